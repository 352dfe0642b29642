"""Uploading a model folder to the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from omni_thinker.errors import UserError
from omni_thinker.hub.card import CARD, write_cards
from omni_thinker.runs.read import read_result
from omni_thinker.runs.unit_run import models_of

_CONNECTION = ("httpx", "httpcore", "requests")
"""Packages by which versions of huggingface_hub connect, and whose errors they let through."""
_WEIGHTS = ("*.safetensors", "*.gguf")


@dataclass(frozen=True, slots=True)
class Upload:
    """A folder of a model, and its files with their sizes in bytes."""

    folder: Path
    files: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())


def to_upload(place: Path, arm: str = "", seed: int | None = None) -> Upload:
    """The files of a model: `place` is its folder, or a run's directory whose `arm` (and `seed`) is meant. Of a run the
    card is written first. Raises UserError where there is no such model."""
    folder = _of_run(place, arm, seed) if (place / "result.json").exists() else place
    if folder is place and (arm or seed is not None):
        raise UserError("holds no result.json, so it has no arms", file=place, key="--arm")
    if not folder.is_dir() or not (folder / "config.json").exists() or not any(map(list, map(folder.glob, _WEIGHTS))):
        raise UserError("isn't a model's folder: config.json and weights are missing", file=folder)
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError("is a link to another folder; put the file itself there, or remove the link", file=path)
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if CARD not in files:
        raise UserError(f"has no model card; write a {CARD} first", file=folder)
    return Upload(folder, files)


def push(upload: Upload, repo: str, *, private: bool = True, message: str = "") -> str:
    """Make the repository unless it is there, and upload the files in one commit; the address of the commit.

    Raises UserError where the hub refuses, can't be reached, or doesn't know who asks."""
    check_name(repo)
    api = HfApi(library_name="omni-thinker")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message=message or f"Upload {upload.folder.name}",
        )
    except LocalTokenNotFoundError:
        raise UserError("the hub doesn't know you: run `hf auth login`, or set HF_TOKEN", key="REPO") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set; unset it to upload", key="REPO") from None
    except HfHubHTTPError as exc:
        remedy = "; run `hf auth login`, or set HF_TOKEN" if getattr(exc.response, "status_code", 0) == 401 else ""
        raise UserError(f"the hub refused: {_first_line(exc)}{remedy}", key=repo) from None
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        why = f"{type(exc).__name__}: {_first_line(exc)}"
        raise UserError(f"what answers isn't a hub ({why}); look at HF_ENDPOINT", key=repo) from None
    except Exception as exc:
        if not isinstance(exc, OSError) and not type(exc).__module__.startswith(_CONNECTION):
            raise
        raise UserError(f"the hub can't be reached: {_first_line(exc)}", key=repo) from None
    return str(done.commit_url)


def check_name(repo: str) -> None:
    """Raises UserError for what can't be a repository's name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as exc:
        raise UserError(f"isn't a repository's name: {_first_line(exc)}", key="REPO") from None


def _of_run(run: Path, arm: str, seed: int | None) -> Path:
    result = read_result(run / "result.json")
    if arm not in result.arms:
        what = f"no arm {arm!r}" if arm else "say which arm"
        raise UserError(f"{what}; there are {', '.join(result.arms)}", file=run, key="--arm")
    seeds = [one.seed for one in result.arms[arm]]
    if seed is not None and seed not in seeds:
        raise UserError(f"no seed {seed}; there are {', '.join(map(str, seeds))}", file=run, key="--seed")
    write_cards(run)
    return models_of(run, seeds[0] if seed is None else seed) / arm.replace(":", "-")


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
