"""What of the AHN paper is data: `configs/published/paper`, read and checked."""

from __future__ import annotations

from importlib import resources
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from common import yaml
from common.validation import validated


class Strict(BaseModel):
    """A part of those files: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def read(name: str, model: type[Model]) -> Model:
    """A file of `configs/published/paper`."""
    file = resources.files("configs") / "published" / "paper" / name
    return validated(model, yaml.parse(file.read_text("utf-8"), str(file)), str(file))
