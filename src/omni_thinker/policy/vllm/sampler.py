"""Draws answers with vLLM, with weights that are compared bit for bit after they were loaded."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.policy.split import Publisher
from omni_thinker.policy.vllm.engine import KEY, Engine, EngineGone, check_longest
from omni_thinker.policy.vllm.streams import EndedEarly, Orders, Streams
from omni_thinker.policy.vllm.transfer import adapter_sum, file_sums, passage, shared_names
from omni_thinker.protocol import OnGroup
from omni_thinker.recipe import LoraSpec
from omni_thinker.recipe.engines.vllm import VllmSpec
from omni_thinker.sampling.thinking import Decode
from omni_thinker.types import Group, SampleRequest, SamplingParams


class VllmSampler:
    """Implements the Sampler protocol."""

    def __init__(
        self,
        engine: Engine,
        spec: VllmSpec,
        stop_ids: frozenset[int],
        decode: Decode,
        *,
        stop_text: str | None = None,
        lora: LoraSpec | None = None,
        base: Path | str = "",
    ) -> None:
        """`stop_text`: a text that ends every answer. `lora`: weights are an adapter's, of the model `base`."""
        self.engine, self.spec, self._lora = engine, spec, lora
        self._stop_ids, self._decode, self._stop_text = stop_ids, decode, stop_text
        self._base: Path | None = base if isinstance(base, Path) else None  # of a hub's model nothing can be compared
        self._loaded = 0
        self._whole: set[str] = set()
        """Tensors that every worker has whole."""
        self._wanted: Any = None
        """What the engine's weights should be made of: sums of bits by name, or an adapter's number, dtype and sum."""

    def version(self) -> int:
        """0 where the engine's weights aren't those that were loaded last."""
        if self._wanted is None:
            return 0
        return self._loaded if self._held() == self._wanted else 0

    def _held(self) -> Any:
        """What the engine's own weights are made of now; None where its workers differ."""
        if self._lora is not None:
            number = self._wanted[0]
            found = [[number, *answer.get(number, [])] for answer in self.engine.call("omni_adapters")]
            return found[0] if all(one == found[0] for one in found) else None
        answers = self.engine.call("omni_weights", list(self._wanted[1]))
        versions = {answer["version"] for answer in answers}
        sums = self._joined([answer["sums"] for answer in answers], self._wanted[1])
        return (versions.pop(), sums) if len(versions) == 1 else None

    def _joined(self, sums: Sequence[dict[str, int]], names: Iterable[str]) -> dict[str, int]:
        """Of tensors that workers share out, the sum of all; of those that each has whole, the one."""
        joined = {}
        for name in names:
            values = [one[name] for one in sums if name in one]
            joined[name] = values[0] if name in self._whole and len(set(values)) == 1 else sum(values)
        return joined

    def update(self, trainer: Publisher, version: int) -> None:
        self._wanted = None
        size = sum(file.stat().st_size for file in self._base.glob("*.safetensors")) if self._base else 0
        with passage(self.spec.folder, 2 * size) as folder:
            if self._lora is None:
                self._update_all(trainer, folder, version)
            else:
                self._update_adapter(trainer, folder, version, self._lora)
        self.engine.forget()
        self._loaded = version

    def _update_all(self, trainer: Publisher, folder: Path, version: int) -> None:
        trainer.export(folder)
        self.engine.call("omni_load", str(folder), version)
        self._wanted = version, self._sums_of(folder)

    def _sums_of(self, folder: Path) -> dict[str, int]:
        """What some tensors of an engine should be made of, by the files of a folder."""
        kinds: dict[str, tuple[str, int]] = {}
        for answer in self.engine.call("omni_weights", []):
            kinds |= {name: (kind, size) for name, (kind, size) in answer["kinds"].items()}
        sizes = shared_names(folder, kinds)
        if not sizes:
            raise UserError("the engine has no tensor of the model's files, so nobody can tell what it loaded", key=KEY)
        self._whole = {name for name, size in sizes.items() if kinds[name][1] == size}
        return file_sums(folder, {name: kinds[name][0] for name in sizes})

    def _update_adapter(self, trainer: Publisher, folder: Path, version: int, lora: LoraSpec) -> None:
        self._check_base()
        trainer.export_adapter(folder)
        number = str(self.engine.add_adapter(folder, version))
        found = self.engine.call("omni_adapters")[0]
        kind = found[number][0] if number in found else "float32"
        self._wanted = [number, kind, adapter_sum(folder, kind, lora.alpha / lora.rank)]

    def _check_base(self) -> None:
        """Raises UserError where adapters would be added to other weights than they are trained on."""
        if self._base is None:
            return
        wanted = self._sums_of(self._base)
        if (
            self._joined([answer["sums"] for answer in self.engine.call("omni_weights", list(wanted))], wanted)
            != wanted
        ):
            remedy = f"start it again with --model {self._base}"
            raise UserError(f"vLLM holds other weights than the adapters are trained on: {remedy}", key="model.lora")
        self._base = None  # once is enough: nothing of ours changes them

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        """Raises UserError where the engine has no room for a request, and where it is gone."""
        for request in requests:
            check_longest(len(request.prompt) + request.longest, self.engine.longest)
        if self._stop_text:
            requests = [replace(request, stop=(*request.stop, self._stop_text)) for request in requests]
        groups: dict[int, Group] = {}

        def finished(place: int, group: Group) -> None:
            groups[place] = group
            if on_group is not None:
                on_group(place, group)

        streams = Streams(requests, params.group_size, self._stop_ids, self._decode, self._loaded, finished)
        try:
            self._obey(streams.begin(), params)
            while not streams.done:
                for piece in self.engine.poll():
                    self._obey(streams.take(piece), params)
        except EndedEarly as exc:
            raise EngineGone(str(exc)) from None
        finally:
            if streams.pending:
                with suppress(EngineGone):
                    self.engine.drop(streams.pending)
        return [groups[place] for place in range(len(requests))]

    def _obey(self, orders: Orders, params: SamplingParams) -> None:
        if orders.drop:
            self.engine.drop(orders.drop)
        if orders.begin:
            self.engine.begin(orders.begin, params, self._stop_ids, self._loaded if self._lora else 0)
