#!/usr/bin/env bash
# ray 2.60.0: once a program has called ray.init() without an address, programs with default settings can't join a cluster
# that `ray start` begins on that machine.
#
# ray.init() writes ~/.ray/auth_token for its own cluster. `ray start` finds that file and asks for the token, without a
# variable being set. ray.init(address=...) finds the file, too, but doesn't send the token: it raises ConnectionError
# after a while, in words that name neither the token nor the file. With RAY_AUTH_MODE=token it joins.
set -euo pipefail
work=$(mktemp -d)
mkdir "$work/home"
export HOME="$work/home"
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_ADDRESS
trap '"$work/venv/bin/ray" stop --force > /dev/null 2>&1; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check ray==2.60.0
cd "$work"
join() {
  venv/bin/ray start --head --port "$1" --num-cpus 1 --include-dashboard=false > /dev/null 2>&1
  venv/bin/python - "$1" 2> /dev/null <<'PY' || true
import sys

import ray

try:
    ray.init(address=f"127.0.0.1:{sys.argv[1]}", log_to_driver=False)
    print("joined")
except Exception as error:
    print(type(error).__name__, "names the token" if "token" in str(error).lower() else "doesn't name the token")
PY
  venv/bin/ray stop > /dev/null 2>&1
}
{
  echo "at first: $(join 6391)"
  venv/bin/python -c "import ray; ray.init(num_cpus=1, include_dashboard=False); ray.shutdown()" > /dev/null 2>&1
  echo "left by ray.init(): $(ls "$HOME/.ray")"
  echo "afterwards: $(join 6392)"
  echo "with RAY_AUTH_MODE=token: $(RAY_AUTH_MODE=token join 6393)"
} | tee seen
diff seen - <<'SEEN'
at first: joined
left by ray.init(): auth_token
afterwards: ConnectionError doesn't name the token
with RAY_AUTH_MODE=token: joined
SEEN
echo "ray 2.60.0: as described"
