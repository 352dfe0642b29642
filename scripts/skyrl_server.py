"""A self-hosted training service with the Tinker API: SkyRL's server on JAX, out of an ordinary virtual environment.

Run by a Python that has `skyrl[tinker,jax]` (`make test-tinker` makes one):

    python scripts/skyrl_server.py MODEL_FOLDER --port 8123 --folder STATES

SkyRL starts the half that computes by `uv run`, and its types need Python 3.12. Neither is needed here. Everything that
the service keeps lies in `--folder`: started again on it, the service knows the states that it saved."""

import argparse
import json
import os
import sys
import typing
from pathlib import Path

import typing_extensions

CONFIG = {"train_micro_batch_size": 8, "sample_max_num_sequences": 8, "max_lora_adapters": 16, "max_lora_rank": 32}
"""Small batches: the first groups are back while others are being sampled."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder or hub name")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--folder", type=Path, required=True, help="where states and the list of requests are kept")
    parser.add_argument("--backend-config", type=json.loads, default={}, help="JSON, over CONFIG of this file")
    args = parser.parse_args()
    if sys.version_info < (3, 12):
        typing.TypedDict = typing_extensions.TypedDict  # pydantic refuses the older one
    os.environ.setdefault("PYTHONPATH", "")
    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig, config_to_argv

    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = EngineConfig(
        base_model=args.model,
        backend="jax",
        backend_config={**CONFIG, **args.backend_config},
        checkpoints_base=folder / "checkpoints",
        database_url=f"sqlite:///{folder / 'requests.db'}",
    )
    start = f"import typing, typing_extensions as t; typing.TypedDict = t.TypedDict; {_RUN}"
    api._build_uv_run_cmd_engine = lambda _parent, config: [sys.executable, "-c", start, *config_to_argv(config)]
    api.app.state.engine_config = config
    uvicorn.run(api.app, host="127.0.0.1", port=args.port, log_level="warning")


_RUN = "import runpy; runpy.run_module('skyrl.tinker.engine', run_name='__main__', alter_sys=True)"

if __name__ == "__main__":
    main()
