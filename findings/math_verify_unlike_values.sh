#!/usr/bin/env bash
# Math-Verify 0.9.0 with latex2sympy2-extended 1.11.0: values that differ are equal.
#
# The base of a number is ignored (2516 in base 8 and in base 9), and small values are compared by absolute difference,
# so any two that are small enough are equal. As a reward this teaches wrong answers. What was seen is below.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check math-verify==0.9.0 latex2sympy2-extended==1.11.0
cat > "$work/show.py" <<'PY'
from math_verify import parse, verify

for gold, answer in (("2516_8", "2516_9"), ("10^{-20}", "10^{-25}"), ("3", "4")):
    print(gold, answer, verify(parse(f"${gold}$"), parse(f"${answer}$")))
PY
"$work/venv/bin/python" "$work/show.py" 2> /dev/null | tee "$work/seen"
diff "$work/seen" - <<'SEEN'
2516_8 2516_9 True
10^{-20} 10^{-25} True
3 4 False
SEEN
echo "Math-Verify 0.9.0: as described"
