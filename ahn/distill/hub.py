"""Uploading a finished folder to the hub (`training_arguments.push_to_hub`).

transformers' Trainer uploads its checkpoints, which nobody can load; here the finished folder goes
up: weights, configuration, card, log and curve.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ahn.distill.files import first_line
from ahn.distill.recipe import Recipe
from common.errors import InputError

logger = logging.getLogger(__name__)


def wants_upload(recipe: Recipe) -> bool:
    """Whether the finished folder shall go to the hub."""
    return bool(recipe.training_arguments.get("push_to_hub"))


def check_hub(recipe: Recipe) -> None:
    """Make the repository before anything is trained, where it is not there yet.

    Raises:
        InputError: the hub cannot be reached, or does not let us write there.
    """
    from huggingface_hub import HfApi

    try:
        HfApi(token=_token(recipe)).create_repo(
            _repository(recipe),
            private=recipe.training_arguments.get("hub_private_repo"),
            exist_ok=True,
        )
    except Exception as error:  # offline, no token, no right, no such name: each its own kind
        raise InputError(
            f"training_arguments.push_to_hub: {_repository(recipe)}: {first_line(error)}. Log in "
            "('hf auth login') on a machine with network, or train without it and upload the "
            "finished folder ('hf upload')"
        ) from None


def upload(recipe: Recipe, output: Path) -> None:
    """Upload the finished folder, without its checkpoints.

    Raises:
        InputError: the upload failed; the folder is whole.
    """
    from huggingface_hub import HfApi

    try:
        HfApi(token=_token(recipe)).upload_folder(
            repo_id=_repository(recipe),
            folder_path=output,
            revision=recipe.training_arguments.get("hub_revision"),
            ignore_patterns=["checkpoints/*", ".*"],
            commit_message="Trained weights",
        )
    except Exception as error:
        raise InputError(
            f"training_arguments.push_to_hub: {_repository(recipe)}: {first_line(error)}. The "
            f"training is finished and saved: hf upload {_repository(recipe)} {output}"
        ) from None
    logger.warning("%s: uploaded to %s", output, _repository(recipe))


def _repository(recipe: Recipe) -> str:
    return str(
        recipe.training_arguments.get("hub_model_id") or Path(recipe.output_dir).absolute().name
    )


def _token(recipe: Recipe) -> Any:
    return recipe.training_arguments.get("hub_token")
