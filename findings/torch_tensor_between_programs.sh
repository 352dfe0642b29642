#!/usr/bin/env bash
# torch 2.13.0 (CPU): once torch is imported, a tensor can't be sent through multiprocessing.connection to a program
# that isn't a child.
#
# Both programs have one authkey, and a NumPy array arrives. A tensor doesn't: torch has replaced how it is pickled, and
# sends a handle of shared memory. The receiver then fetches it from a second server in the sender, which asks for the
# sender's own random key, and recv raises AuthenticationError. Sending bytes made by pickle.dumps(tensor) works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/receive.py" <<'PY'
import pickle
import subprocess
import sys
from multiprocessing.connection import Listener

import torch

what = sys.argv[1]
with Listener(("127.0.0.1", 0), authkey=b"one key for both") as listener:
    sender = subprocess.Popen([sys.executable, "send.py", str(listener.address[1]), what], stderr=subprocess.DEVNULL)
    with listener.accept() as connection:
        try:
            got = pickle.loads(connection.recv_bytes()) if what == "bytes" else connection.recv()
            print(what, "arrives as", type(got).__name__)
        except Exception as error:
            print(what, "raises", type(error).__name__)
    sender.wait()
PY
cat > "$work/send.py" <<'PY'
import pickle
import sys
import time
from multiprocessing.connection import Client

import numpy
import torch

with Client(("127.0.0.1", int(sys.argv[1])), authkey=b"one key for both") as connection:
    if sys.argv[2] == "bytes":
        connection.send_bytes(pickle.dumps(torch.ones(3)))
    else:
        connection.send(torch.ones(3) if sys.argv[2] == "tensor" else numpy.ones(3))
    time.sleep(2)
PY
cd "$work"
for what in array tensor bytes; do venv/bin/python receive.py "$what"; done | tee seen
diff seen - <<'SEEN'
array arrives as ndarray
tensor raises AuthenticationError
bytes arrives as Tensor
SEEN
echo "torch 2.13.0: as described"
