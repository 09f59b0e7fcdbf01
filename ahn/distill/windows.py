"""What can be said about windows before a run: which never fit, and from how many samples
nothing can be learnt.

A batch is as long as its longest sample; with one sample a batch, what is said is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ahn.distill.recipe import Recipe
from ahn.distill.student import fitting_sinks, fitting_windows
from common.errors import InputError

Lengths = npt.NDArray[np.int64]


def notices_of_recipe(recipe: Recipe) -> list[str]:
    """What a recipe for memories does that its reader may not expect."""
    found = []
    if "sliding_window" not in recipe.model_fields_set:
        trained = ", and trained with it" if recipe.sliding_window_type == "fixed" else ""
        found.append(
            f"sliding_window is not given: the memory is saved for {recipe.sliding_window} "
            f"lossless tokens{trained}; the paper has 32768"
        )
    if recipe.ahn_position == "prefix" and recipe.num_attn_sinks:
        found.append(
            f"ahn_position prefix trains without sinks; the memory is saved for "
            f"{recipe.num_attn_sinks} (num_attn_sinks)"
        )
    return found


def check_windows(recipe: Recipe) -> None:
    """That some window can fit a sample, whatever the data are: none is longer than cutoff_len.

    Raises:
        InputError: none can.
    """
    shortest, longest = recipe.filter_len + 1, recipe.cutoff_len
    if shortest > longest:
        raise InputError(
            f"filter_len: samples of at most {recipe.filter_len} tokens are left out, and none is "
            f"longer than cutoff_len, {recipe.cutoff_len}"
        )
    ends = {n for w in recipe.sliding_window_choices for n in (w + 1, 8 * w - 1)}
    lengths = [n for n in (shortest, longest, *ends) if shortest <= n <= longest]
    if not _fits(recipe, np.array(lengths)).any():
        raise InputError(
            f"{_named(recipe)} can never fit: samples have more than filter_len "
            f"({recipe.filter_len}) and at most cutoff_len ({recipe.cutoff_len}) tokens, and a "
            f"window must be smaller than its sample{_and_larger(recipe)}"
        )


def notices_of_data(recipe: Recipe, lengths: Lengths, dataset: str | list[str]) -> list[str]:
    """Windows and sinks that are never drawn for these samples; samples that no window fits.

    Args:
        recipe: for memories.
        lengths: `[N]` tokens of each sample.
        dataset: whose they are.

    Raises:
        InputError: there is nothing to learn from any of them.
    """
    name = ", ".join(dataset) if isinstance(dataset, list) else dataset
    fits = _fits(recipe, lengths)
    longest = int(lengths.max())
    if not fits.any():
        raise InputError(
            f"{name}: no sample is longer than the window{_and_larger(recipe)}: samples have "
            f"{int(lengths.min())} to {longest} tokens, {_named(recipe)} does not fit any"
        )
    found = []
    if not fits.all():
        found.append(
            f"{name}: {int((~fits).sum())} of {len(lengths)} samples fit no window "
            f"({_named(recipe)}): nothing is learnt from them"
        )
    drawn = {w for n in np.unique(lengths) for w in fitting_windows(recipe, int(n))}
    if recipe.sliding_window_type == "random":
        never = [w for w in recipe.sliding_window_choices if w not in drawn]
        if never:
            found.append(
                f"sliding_window_choices: never drawn for {name}: {', '.join(map(str, never))} "
                f"(samples have {int(lengths.min())} to {longest} tokens; drawn is L/8 < W < L)"
            )
    if recipe.ahn_position == "random":
        sinks = {s for w in drawn for s in fitting_sinks(recipe, w)}
        never = [s for s in recipe.num_attn_sinks_choices if s not in sinks]
        if never:
            found.append(
                f"num_attn_sinks_choices: never drawn for {name}: {', '.join(map(str, never))} "
                f"(the largest window is {max(drawn)}, and sinks take at most half of it)"
            )
    return found


def _fits(recipe: Recipe, lengths: Lengths) -> npt.NDArray[np.bool_]:
    """`[N]`: whether some window fits."""
    unique, place = np.unique(lengths, return_inverse=True)
    fits = np.array([bool(fitting_windows(recipe, int(length))) for length in unique])
    return fits[place]


def _named(recipe: Recipe) -> str:
    if recipe.sliding_window_type == "fixed":
        return f"sliding_window {recipe.sliding_window}"
    if recipe.sliding_window_type == "linear":
        return "the window max(L/4, 512) of sliding_window_type linear"
    return f"sliding_window_choices {recipe.sliding_window_choices}"


def _and_larger(recipe: Recipe) -> str:
    if recipe.sliding_window_type == "random":
        return " and larger than an eighth of it"
    return ""
