#!/usr/bin/env bash
# torch 2.13.0 (CPU): a hook given to register_post_accumulate_grad_hook keeps what it refers to for ever, if that holds
# the parameter. The same closure given to register_hook is collected.
#
# A trainer that holds parameters, and whose hook refers to the trainer, is the usual form of an optimiser step inside
# the backward pass. Python's collector of cycles doesn't look into these hooks, so the weights and the optimiser's state
# of a trainer that nobody uses any more stay: a process that makes one model after another grows by a whole one each
# time. The remedies are to remove the hook by its handle, or to let it refer to single tensors.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/hooks.py" <<'PY'
import gc
import weakref

import torch


class Trainer:
    def __init__(self, kind):
        self.param = torch.nn.Parameter(torch.zeros(4))
        self.seen = 0
        self.handle = getattr(self.param, kind)(self.count)

    def count(self, _):
        self.seen += 1


for kind in ("register_hook", "register_post_accumulate_grad_hook"):
    for removed in (False, True):
        trainer = Trainer(kind)
        (trainer.param * 2).sum().backward()
        assert trainer.seen == 1
        if removed:
            trainer.handle.remove()
        alive = weakref.ref(trainer)
        del trainer
        gc.collect()
        print(kind, "removed" if removed else "kept", "->", "freed" if alive() is None else "never freed")
PY
cd "$work"
venv/bin/python hooks.py | tee seen
diff seen - <<'SEEN'
register_hook kept -> freed
register_hook removed -> freed
register_post_accumulate_grad_hook kept -> never freed
register_post_accumulate_grad_hook removed -> freed
SEEN
echo "torch 2.13.0: as described"
