"""Names of the forms of a recurrence. No torch."""

from __future__ import annotations

from typing import Literal, get_args

Backend = Literal["recurrent", "chunked", "fla", "mamba_ssm"]
#: `recurrent` and `chunked` are torch; the others call kernels of other packages.
BACKENDS: tuple[str, ...] = get_args(Backend)
