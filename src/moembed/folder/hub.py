"""The hub: a model by id and revision, kept in a cache on disk; a model folder pushed as one commit.

Tokens, the cache (``HF_HOME``) and offline mode (``HF_HUB_OFFLINE=1``) are those of huggingface-hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from moembed.types import UserError

# What a model folder is read from. Nothing else is fetched; nothing else but the card is pushed.
_IN_ANY_MODULE = [
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "sentence_*_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "quantized.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "bpe.codes",
    "*.model",
]
_MODEL_FILES = [
    "config_sentence_transformers.json",
    "modules.json",
    "space_relation.json",
    *_IN_ANY_MODULE,
    *(f"[0-9]*_*/{pattern}" for pattern in _IN_ANY_MODULE),
]
# Fetched on request, and only for a module whose files above hold no weights; never pushed.
_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
_WITHOUT_WEIGHTS = ("_Pooling", "_Normalize")  # how the folders of modules end that have none
_CARD = "README.md"
_LOG_IN = "check the name, then run `hf auth login` or set HF_TOKEN"
_REFUSALS = {
    401: f"it wants to know who you are; {_LOG_IN}",
    403: "your token does not allow it; take one that does, or ask for access on the page of the model",
    404: f"it shows you no model of that name; {_LOG_IN} if the model is private",
}


def locate(path_or_hub_id: str | Path, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """A local folder as it is; else the hub's files, from the cache when the hub is out of reach.

    Args:
        path_or_hub_id: a hub id may name its revision itself: ``owner/name@revision``.
        revision: branch, tag or commit of a hub id; default: its main branch.
        allow_pickle: fetch pytorch_model.bin where there is no model.safetensors.

    Raises:
        UserError: neither a model folder, nor in the cache, nor to be had from the hub; two revisions.
    """
    path, name = Path(path_or_hub_id), str(path_or_hub_id)
    if folder := local_folder(path):
        if revision is not None:
            raise UserError(f"{name} is a folder: it has no revision {revision!r}, only a hub id has")
        return folder
    if name.startswith(("http://", "https://")):
        raise UserError(f"{name} is a server, and the files of a model are needed here: name its folder")
    repo_id, named = split_revision(name)
    if path.exists() or not is_hub_id(repo_id):
        what = "has no config.json, so it is not a model folder" if path.exists() else "does not exist"
        raise UserError(f"{name or 'an empty name'} {what}")
    if named and revision is not None:
        raise UserError(f"{name} names its revision, and {revision!r} is a second one: leave out either")
    from huggingface_hub import snapshot_download

    revision = named or revision
    with _one_sentence(f"{name} is neither a folder nor reachable on the hub nor cached", revision):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_MODEL_FILES))
        if allow_pickle and (pickles := _pickles(folder)):
            # a snapshot is named after its commit; the branch may have moved on since
            snapshot_download(repo_id, revision=folder.name, allow_patterns=pickles)
    return folder


def _pickles(folder: Path) -> list[str]:
    """The pickles of every module that has no safetensors and may have weights."""
    found = (place for place in (folder, *folder.glob("[0-9]*_*")) if (place / "config.json").is_file())
    bare = [place for place in found if not any(place.glob("*.safetensors"))]
    places = [place.relative_to(folder) for place in bare if not place.name.endswith(_WITHOUT_WEIGHTS)]
    return [(place / name).as_posix() for place in places for name in _PICKLES]


def split_revision(name: str) -> tuple[str, str | None]:
    """``owner/name@revision`` in its two parts; any other name as it is, and None."""
    repo_id, _, revision = name.partition("@")
    return (repo_id, revision) if revision and is_hub_id(repo_id) else (name, None)


def local_folder(path: Path) -> Path | None:
    """The model folder at ``path``: itself, or the ``model`` of a run folder."""
    files = ("config.json", "modules.json", "adapter_config.json")
    places = ((folder, name) for folder in (path, path / "model") for name in files)
    return next((folder for folder, name in places if (folder / name).is_file()), None)


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name`` and the characters the hub allows."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def require_repo_id(repo_id: str) -> None:
    if not is_hub_id(repo_id):
        raise UserError(
            f"{repo_id!r} cannot name a repository: give owner/name of letters, digits, - _ and ."
        )


def model_files(folder: Path) -> dict[str, int]:
    """The files of a model folder that belong on the hub, and their sizes in bytes."""
    found = (file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern)) if file.is_file())
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in found}
    return {name: size for name, size in sizes.items() if name == _CARD or _is_of_model(name)}


def push(folder: Path, repo_id: str, revision: str | None = None, private: bool = False) -> str:
    """Make the repository if there is none and upload ``model_files(folder)`` to it in one commit.

    Files of an earlier model that this one lacks are removed by it: what loads is what was pushed.

    Args:
        revision: the branch to push to, made if there is none; default: the main branch.
        private: make it private; a repository that exists and is public is refused.

    Returns:
        The address of the commit.

    Raises:
        UserError: a bad id, no right to write, no connection, a card the hub does not accept.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    require_repo_id(repo_id)
    files = model_files(folder)
    api = HfApi()
    with _one_sentence(f"could not push to {repo_id} on the hub", revision):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} exists and is public: make it private there, or leave out --private")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in there if _is_of_model(name) and name not in files),
                *(CommitOperationAdd(name, folder / name) for name in files),
            ],
            commit_message="Upload a model with moembed",
            revision=revision,
        )
    return str(commit.commit_url)


def _is_of_model(name: str) -> bool:
    same_depth = (pattern for pattern in _MODEL_FILES if pattern.count("/") == name.count("/"))
    return any(fnmatchcase(name, pattern) for pattern in same_depth)


@contextmanager
def _one_sentence(what: str, revision: str | None) -> Iterator[None]:
    """Whatever fails between us and the hub, as ``what: why; what to do``."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except UserError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # these two only say during which step it failed
        wraps = isinstance(error, FileNotFoundError | RuntimeError) and error.__cause__
        raise UserError(f"{what}: {_reason(wraps or error, revision)}") from None


def _reason(error: BaseException, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE to ask the hub"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision!r}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return _REFUSALS.get(status, "it does not answer as it should; try again later") + f" (HTTP {status})"
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.HTTPError):  # type: ignore[attr-defined]
        return f"no connection ({said}); check the network and try again"
    return said
