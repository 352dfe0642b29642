#!/usr/bin/env bash
# reasoning-gym 0.1.25: for one seed, some sets make other problems in each Python process.
#
# They walk over sets of strings, whose order follows PYTHONHASHSEED. So a run that is resumed in another process, or
# data that two workers draw, differ although the seed is the same. Seen for isomorphic_strings with the hash seeds 1
# and 2; chain_sum is the same in both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check reasoning-gym==0.1.25
cat > "$work/show.py" <<'PY'
import hashlib
import reasoning_gym

for name in ("chain_sum", "isomorphic_strings"):
    text = "".join(entry["question"] for entry in reasoning_gym.create_dataset(name, size=20, seed=7))
    print(name, hashlib.sha256(text.encode()).hexdigest()[:12])
PY
PYTHONHASHSEED=1 "$work/venv/bin/python" "$work/show.py" > "$work/one"
PYTHONHASHSEED=2 "$work/venv/bin/python" "$work/show.py" > "$work/two"
join "$work/one" "$work/two" | awk '{ print $1, ($2 == $3 ? "same" : "differs") }' | tee "$work/seen"
diff "$work/seen" - <<'SEEN'
chain_sum same
isomorphic_strings differs
SEEN
echo "reasoning-gym 0.1.25: as described"
