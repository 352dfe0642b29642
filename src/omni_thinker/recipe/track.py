"""The table `[track]` of a recipe: which experiment trackers a study's metrics are sent to. Imports no torch."""

from omni_thinker.recipe.types import Table


class TrackSpec(Table):
    """Trackers get the rows of metrics.jsonl as they are written. A tracker that fails never stops a study."""

    to: tuple[str, ...] = ()
    """`trackio`, `wandb`, `tensorboard`, `mlflow`, or `python:MODULE:CLASS`. Each needs its package: the extra of that
    name. Empty: no tracker."""
    project: str = ""
    """Project or experiment at the tracker. Empty: the recipe's name."""
    folder: str = ""
    """Where the trackers write on this machine; studies that share a folder are seen side by side. Empty: `track/` in
    the run's directory."""
    online: bool = False
    """Whether rows leave this machine: to wandb's server, to MLFLOW_TRACKING_URI, and to TRACKIO_SPACE_ID or
    TRACKIO_SERVER_URL. tensorboard has no server."""
