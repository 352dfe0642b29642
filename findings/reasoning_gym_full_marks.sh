#!/usr/bin/env bash
# reasoning-gym 0.1.25: two scorers give full marks to answers that are wrong.
#
# game_of_life_halting: where the gold answer is False, any text but the empty one scores 1.0, "True" included.
# coin_flip: where the gold is a probability such as 0.3125, the answer "0" scores 1.0.
# Reinforcement learning on such a score learns to say one word. What was seen is below; anything else fails.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check reasoning-gym==0.1.25
cat > "$work/show.py" <<'PY'
import reasoning_gym

for name, answers in (("game_of_life_halting", ("False", "True", "no idea", "")), ("coin_flip", ("0.3125", "0", "0.9"))):
    for entry in reasoning_gym.create_dataset(name, size=20, seed=1):
        if entry["answer"] in ("False", "0.3125"):
            data = reasoning_gym.create_dataset(name, size=1, seed=1)
            print(name, "gold", entry["answer"], {said: data.score_answer(said, entry) for said in answers})
            break
PY
"$work/venv/bin/python" "$work/show.py" | tee "$work/seen"
diff "$work/seen" - <<'SEEN'
game_of_life_halting gold False {'False': 1.0, 'True': 1.0, 'no idea': 1.0, '': 0.0}
coin_flip gold 0.3125 {'0.3125': 1.0, '0': 1.0, '0.9': 0.6666666666666666}
SEEN
echo "reasoning-gym 0.1.25: as described"
