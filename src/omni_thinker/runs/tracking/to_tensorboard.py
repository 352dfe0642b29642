"""TensorBoard: event files in FOLDER/tensorboard/STUDY/ARM/seed-SEED."""

from collections.abc import Mapping
from pathlib import Path

from omni_thinker.runs.tracking.base import Place, Study

_FOLDER = "tensorboard"


class TensorBoard:
    """A resumed run goes on in another event file of the same folder, which TensorBoard shows as one run."""

    def __init__(self, study: Study) -> None:
        self._study, self._folder = study, study.folder / _FOLDER
        self._writers: dict[str, _Writer] = {}

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        if place.key not in self._writers:
            self._writers[place.key] = _Writer(self._folder / place.name(self._study))
        self._writers[place.key].add(step, values)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.file.flush()

    def close(self, *, ended: bool) -> None:
        for writer in self._writers.values():
            writer.file.close()

    @staticmethod
    def words(study: Study) -> str:
        return f"tensorboard --logdir {study.folder / _FOLDER}"


class _Writer:
    """The event file of one run. Written as torch's SummaryWriter does, without torch."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.file = EventFileWriter(str(folder))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        named = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.file.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=named)))
