#!/usr/bin/env bash
# torch 2.13.0 (CPU): FSDP2's documented way to sum gradients instead of averaging them fails with gloo.
#
# set_gradient_divide_factor(1.0) asks for a sum, as a loss that is normalised over the whole batch needs it. The
# backward pass then raises, since gloo has no ReduceOp.PREMUL_SUM. With set_force_sum_reduction_for_comms(True) as
# well, gradients are the sum. Without either they are the mean.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/train.py" <<'PY'
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
torch.manual_seed(0)
layer = torch.nn.Linear(4, 1, bias=False)
fully_shard(layer, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
if sys.argv[1] != "mean":
    layer.set_gradient_divide_factor(1.0)
if sys.argv[1] == "forced":
    layer.set_force_sum_reduction_for_comms(True)
try:
    layer(torch.ones(1, 4)).sum().backward()  # each rank's gradient is a row of ones
    seen = layer.weight.grad.full_tensor().flatten().tolist()
except RuntimeError as error:
    seen = "PREMUL_SUM refused" if "PREMUL_SUM" in str(error) else str(error)
if dist.get_rank() == 0:
    print(sys.argv[1], seen, flush=True)
os._exit(0)  # where one rank has raised, the other would wait
PY
for way in mean factor forced; do
	"$work/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 "$work/train.py" "$way" 2>/dev/null
done | tee "$work/seen"
diff "$work/seen" - <<'SEEN'
mean [1.0, 1.0, 1.0, 1.0]
factor PREMUL_SUM refused
forced [2.0, 2.0, 2.0, 2.0]
SEEN
echo "torch 2.13.0: as described"
