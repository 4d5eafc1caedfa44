"""`moembed push`: a model onto the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moembed.cli.options import Json
from moembed.console import print_json, print_table
from moembed.types import UserError


def push(
    model: Annotated[Path, typer.Argument(help="A model folder or a run folder.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: owner/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if there is none.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go up; no network.")] = False,
    json_: Json = False,
) -> None:
    """Upload a model to the hub in one commit, after reading it whole: a damaged one stays here.

    Only the files a model is read from go up, and its card. Log in first: `hf auth login`, or HF_TOKEN.

    Example: `moembed push runs/demo me/moles --private`
    """
    from moembed.folder import hub
    from moembed.folder.modules import encoder_folder
    from moembed.folder.read import read_folder
    from moembed.folder.tensors import weight_files

    folder = hub.local_folder(model) or model
    hub.require_repo_id(repo_id)
    read_folder(folder)
    files = hub.model_files(folder)
    weights = [file.relative_to(folder).as_posix() for file in weight_files(encoder_folder(folder))]
    if left := [name for name in weights if name not in files]:
        raise UserError(f"weights named {left[0]!r} would stay here: save the model again, then push")
    url = None if dry_run else hub.push(folder, repo_id, revision, private)
    if json_:
        print_json({"repo_id": repo_id, "revision": revision, "files": files, "url": url})
        return
    rows = [[name, f"{size:,}"] for name, size in files.items()]
    print_table(f"{folder} -> {repo_id}", ["file", "bytes"], rows)
    print(url or "nothing was uploaded: --dry-run")
