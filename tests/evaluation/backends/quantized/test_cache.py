"""Quantised caches: what is stored, to the byte, and what comes back."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers.cache_utils import DynamicCache, HQQQuantizedLayer

from evaluation.backends.cache_bytes import held
from evaluation.backends.quantized.cache import (
    AXES,
    BITS,
    FP8,
    Fp8Layer,
    HQQLayer,
    KVShape,
    QuantoLayer,
    Scheme,
    default_group,
    quantize,
    states,
)

MODULES = {"hqq": "hqq", "quanto": "optimum"}
SHAPES = [KVShape(3, 40, 24), KVShape(1, 64, 64), KVShape(4, 16, 16)]


def available(backend: str) -> Any:
    missing = backend in MODULES and importlib.util.find_spec(MODULES[backend]) is None
    return pytest.mark.skipif(missing, reason="pip install 'ahn-bench[quantized]'")


def schemes(group: int = 64, residual: int = 128) -> list[Any]:
    found = []
    for backend, choices in BITS.items():
        for bits in choices:
            for axis in AXES[backend] or (0,):
                scheme = (
                    Scheme(backend, bits)
                    if backend == "fp8"
                    else Scheme(backend, bits, group, axis, axis, residual)
                )
                name = f"{backend}-{bits}-axis{axis}"
                found.append(pytest.param(scheme, id=name, marks=available(backend)))
    return found


def keys_values(
    shape: KVShape, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        (torch.randn(1, shape.heads, tokens, dim, generator=generator) * 3 + 0.5).to(dtype)
        for dim in (shape.key_dim, shape.value_dim)
    )


def filled(scheme: Scheme, *chunks: tuple[Tensor, Tensor]) -> Any:
    cache = scheme.cache(1)
    for keys, values in chunks:
        cache.update(keys, values, 0)
    return cache


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", schemes())
def test_bytes_are_those_of_the_formula_at_every_length(scheme: Scheme, shape: KVShape) -> None:
    for tokens in [*range(1, 20), *range(20, 200, 9), 200]:
        cache = filled(scheme, keys_values(shape, tokens))
        found = held(cache)
        assert found.used == found.stored == scheme.layer_bytes(shape, tokens, 0, 4), tokens


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", schemes())
def test_every_length_up_to_200_is_stored_and_comes_back(
    scheme: Scheme, dtype: torch.dtype
) -> None:
    shape = KVShape(3, 40, 24)
    for tokens in range(1, 201):
        chunk = keys_values(shape, tokens, dtype, tokens)
        cache = filled(scheme, chunk)
        assert held(cache).used == scheme.layer_bytes(shape, tokens, 0, dtype.itemsize)
        for found, wanted in zip(states(cache.layers[0]), chunk, strict=True):
            assert found.shape == wanted.shape and found.isfinite().all()


@pytest.mark.parametrize(("dtype", "element"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("scheme", schemes())
def test_both_dtypes_come_back_in_their_dtype_and_close(
    scheme: Scheme, dtype: torch.dtype, element: int
) -> None:
    shape = KVShape(2, 64, 64)
    chunk = keys_values(shape, 37, dtype)
    cache = filled(scheme, chunk)
    assert held(cache).used == scheme.layer_bytes(shape, 37, 0, element)
    for found, wanted in zip(states(cache.layers[0]), chunk, strict=True):
        assert found.dtype == dtype
        error = (found - wanted).float().norm() / wanted.float().norm()
        assert error < {8: 0.03, 4: 0.12, 2: 0.6}[scheme.bits]


def test_bytes_per_element_are_bits_and_two_scales_per_group() -> None:
    # 4 bits and two scales of 16 bits for 64 elements: 4.5 bits of 16, 28.1 % of full
    shape = KVShape(2, 128, 128)
    full = 2 * 2 * 128 * 1000 * 2
    assert Scheme("hqq", 4, 64, 1, 1).layer_bytes(shape, 1000, 0, 2) == full * 4.5 / 16
    assert Scheme("quanto", 2, 64).layer_bytes(shape, 1000, 0, 2) == full * 2.5 / 16
    assert Scheme("hqq", 8, 64, 1, 1).layer_bytes(shape, 1000, 0, 2) == full * 8.5 / 16
    assert Scheme("fp8", 8).layer_bytes(shape, 1000, 0, 2) == full * (8 + 16 / 128) / 16
    # tokens that wait are full ones
    assert Scheme("hqq", 4, 64, 1, 1).layer_bytes(shape, 0, 1000, 2) == full


@pytest.mark.parametrize(
    "bits", [pytest.param(bits, marks=available("quanto")) for bits in BITS["quanto"]]
)
def test_quanto_stores_the_nearest_of_evenly_spaced_levels(bits: int) -> None:
    """Written out by hand: levels from the least to the largest element of each token's head."""
    keys, values = keys_values(KVShape(2, 16, 16), 5)
    layer = QuantoLayer(bits, 0, 0, 16, 128)
    layer.update(keys, values)
    top = 2**bits - 1
    codes: list[list[int]] = []
    for head in range(2):
        for token in range(5):
            elements = keys[0, head, token].tolist()
            least = min(elements)
            step = (max(elements) - least) / top
            codes.append([round((x - least) / step) for x in elements])
            wanted = [least + code * step for code in codes[-1]]
            torch.testing.assert_close(
                states(layer)[0][0, head, token], torch.tensor(wanted), rtol=0, atol=1e-5
            )
    # the first rows lie in the low bits; the last byte's high bits may stay empty
    stored = -(-len(codes) // (8 // bits))
    assert layer._quantized_keys.data.shape == (stored, 16)
    first = layer._quantized_keys.data[0].tolist()
    for at in range(8 // bits):
        row = at * stored
        held_codes = [(byte >> bits * at) & top for byte in first]
        assert held_codes == (codes[row] if row < len(codes) else [0] * 16)


@available("quanto")
def test_quanto_along_channels_takes_a_group_of_tokens() -> None:
    keys, values = keys_values(KVShape(1, 4, 4), 16)
    layer = QuantoLayer(4, -1, -1, 8, 128)
    layer.update(keys, values)
    groups = keys[0, 0].reshape(2, 8, 4)
    least, step = groups.amin(1, True), (groups.amax(1, True) - groups.amin(1, True)) / 15
    wanted = (((groups - least) / step).round() * step + least).reshape(16, 4)
    torch.testing.assert_close(states(layer)[0][0, 0], wanted, rtol=0, atol=1e-5)


@available("quanto")
@pytest.mark.parametrize("axis", [0, -1])
def test_quanto_packs_what_the_library_packs(axis: int) -> None:
    """Where the library takes a length, its bytes, scales and shifts are ours."""
    from optimum.quanto import MaxOptimizer, qint4, quantize_weight

    keys, values = keys_values(KVShape(2, 64, 64), 64)
    layer = QuantoLayer(4, axis, axis, 64, 128)
    layer.update(keys, values)
    scale, shift = MaxOptimizer()(keys, qint4, axis, 64)
    library = quantize_weight(keys, qint4, axis, scale, shift, 64)
    ours = layer._quantized_keys
    assert torch.equal(ours.data, library._data._data)
    assert torch.equal(ours.scale, library._scale) and torch.equal(ours.shift, library._shift)


@available("hqq")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", BITS["hqq"])
def test_hqq_is_that_of_transformers_where_it_takes_the_length(bits: int, axis: int) -> None:
    chunk = keys_values(KVShape(2, 64, 64), 40)
    ours = HQQLayer(bits, axis, axis, 64, 128)
    theirs = HQQQuantizedLayer(bits, axis, axis, 64, 128)
    ours.update(*chunk)
    theirs.update(*chunk)
    assert torch.equal(states(ours)[0], theirs._dequantize(theirs._quantized_keys))
    assert torch.equal(states(ours)[1], theirs._dequantize(theirs._quantized_values))


@available("hqq")
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="another rule of when to quantise"
)
@pytest.mark.parametrize("residual", [0, 6, 128])
def test_chunks_are_quantised_when_transformers_does_it(residual: int) -> None:
    ours = HQQLayer(4, 1, 1, 64, residual)
    theirs = HQQQuantizedLayer(4, 1, 1, 64, residual)
    for number, tokens in enumerate((8, 4, 1, 1, 7, 2)):
        chunk = keys_values(KVShape(2, 64, 64), tokens, seed=number)
        for found, wanted in zip(ours.update(*chunk), theirs.update(*chunk), strict=True):
            assert torch.equal(found, wanted)


@available("hqq")
def test_hqq_stores_codes_times_a_step_from_a_zero() -> None:
    """Written out by hand: 4-bit codes, two to a byte, the first half of the rows in high bits."""
    keys, values = keys_values(KVShape(2, 16, 16), 5)
    layer = HQQLayer(4, 1, 1, 16, 128)
    layer.update(keys, values)
    (data, meta), shape = layer._quantized_keys
    assert data.shape == (5, 16) and shape == keys.shape
    rows = [[byte >> 4 for byte in row] for row in data.tolist()]
    rows += [[byte & 15 for byte in row] for row in data.tolist()]
    for row, codes in enumerate(rows):
        head, token = divmod(row, 5)
        step, zero = meta["scale"][row].item(), meta["zero"][row].item()
        wanted = keys[0, head, token]
        assert codes == [min(max(round(x / step + zero), 0), 15) for x in wanted.tolist()]
        found = states(layer)[0][0, head, token]
        torch.testing.assert_close(found, torch.tensor([(c - zero) * step for c in codes]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fp8_scales_each_tokens_head_to_the_largest_number(dtype: torch.dtype) -> None:
    keys, values = keys_values(KVShape(2, 16, 16), 5, dtype)
    keys[0, 1, 3] = 0  # a scale of nothing must not divide by zero
    layer = Fp8Layer()
    layer.update(keys, values)
    stored = layer.quantized_keys
    assert stored is not None and stored.data.dtype == FP8 and stored.scale.dtype == dtype
    for head in range(2):
        for token in range(5):
            row = keys[0, head, token].float()
            if not row.any():
                assert not states(layer)[0][0, head, token].any()
                continue
            scale = stored.scale[0, head, token].item()
            assert scale == pytest.approx(row.abs().max().item() / 448, rel=2**-8)
            assert stored.data[0, head, token].float().abs().max() == 448
            # 3 bits behind the point: a sixteenth at most, half of the least step below
            error = (states(layer)[0][0, head, token].float() - row).abs()
            assert bool((error <= row.abs() * (1 / 16 + 1 / 128) + scale * 2**-10).all())


def test_fp8_quantises_each_token_once() -> None:
    first, second = (keys_values(KVShape(2, 16, 16), n, seed=n) for n in (5, 3))
    layer, alone = Fp8Layer(), Fp8Layer()
    assert layer.update(*first)[0] is first[0]  # the first chunk is seen as it is
    alone.update(*first)
    seen = layer.update(*second)
    assert torch.equal(seen[0][..., :5, :], states(alone)[0])
    assert torch.equal(seen[1][..., 5:, :], second[1])
    assert torch.equal(states(layer)[0][..., :5, :], states(alone)[0])
    assert layer.get_seq_length() == 8


@pytest.mark.parametrize("scheme", schemes(group=16))
def test_equal_elements_come_back_as_they_are(scheme: Scheme) -> None:
    keys = torch.full((1, 2, 3, 16), 0.75)
    cache = filled(scheme, (keys, torch.zeros_like(keys)))
    found = states(cache.layers[0])
    torch.testing.assert_close(found[0], keys, rtol=0.01, atol=0)
    assert not found[1].any()
    if isinstance(cache.layers[0], QuantoLayer):
        # nothing was divided by zero: what becomes of a number that is none, no format says
        assert cache.layers[0]._quantized_keys.scale.all()


@pytest.mark.parametrize("scheme", schemes(residual=10))
def test_chunks_wait_and_are_quantised_as_told(scheme: Scheme) -> None:
    shape, chunks = KVShape(2, 64, 64), [7, 4, 5, 1, 3, 12, 2]
    cache, read = scheme.cache(1), []
    for number, tokens in enumerate(chunks):
        chunk = keys_values(shape, tokens, seed=number)
        read.append(tokens)
        seen = cache.update(*chunk, 0)[0]
        assert torch.equal(seen[..., -tokens:, :], chunk[0])  # a chunk sees itself unquantised
        assert seen.shape[-2] == cache.get_seq_length() == sum(read)
        quantized, waiting = scheme.after(read)
        assert held(cache).used == scheme.layer_bytes(shape, quantized, waiting, 4)
        assert states(cache.layers[0])[0].shape == seen.shape
    assert scheme.after([12], scheme.after(chunks[:5])) == scheme.after(chunks[:6])
    if scheme.backend != "fp8":
        assert scheme.after(chunks[:5]) == (17, 3) and scheme.after(chunks) == (32, 2)


@pytest.mark.parametrize("scheme", schemes())
def test_a_copy_shares_nothing(scheme: Scheme) -> None:
    shape = KVShape(2, 16, 16)
    cache = filled(scheme, keys_values(shape, 5))
    before = states(cache.layers[0])[0].clone()
    copied = copy.deepcopy(cache)
    assert held(cache, copied).stored == 2 * held(cache).stored
    copied.update(*keys_values(shape, 300, seed=1), 0)
    assert torch.equal(states(cache.layers[0])[0], before) and cache.get_seq_length() == 5


@pytest.mark.parametrize("scheme", schemes())
def test_a_full_past_is_quantised_as_if_it_had_been_read_in_one_chunk(scheme: Scheme) -> None:
    chunk = keys_values(KVShape(2, 16, 16), 40)
    full = DynamicCache()
    for number in range(2):
        full.update(chunk[0][..., :25, :], chunk[1][..., :25, :], number)
        full.update(chunk[0][..., 25:, :], chunk[1][..., 25:, :], number)
    kept = torch.tensor([0, 3, 39])
    quantize(full, scheme, [None, kept])
    for layer, tokens in zip(full.layers, (torch.arange(40), kept), strict=True):
        alone = filled(scheme, (chunk[0][..., tokens, :], chunk[1][..., tokens, :]))
        for one, other in zip(states(layer), states(alone.layers[0]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("scheme", schemes())
def test_a_budget_takes_as_many_tokens_as_fit(scheme: Scheme) -> None:
    shapes = [KVShape(3, 40, 24), KVShape(1, 64, 64)]

    def together(tokens: int) -> int:
        return sum(scheme.layer_bytes(shape, tokens, 0, 4) for shape in shapes)

    for budget in (0, 100, 5000, 30_000, together(50), together(50) - 1, together(100)):
        most = scheme.most_tokens(shapes, 4, budget, 100)
        assert together(most) <= budget
        assert most == 100 or together(most + 1) > budget


def test_the_group_divides_the_channels_of_a_head() -> None:
    assert default_group([KVShape(2, 128, 128)]) == 64
    assert default_group([KVShape(2, 96, 128)]) == 32
    assert default_group([KVShape(2, 80, 80), KVShape(1, 128, 64)]) == 16
    assert default_group([KVShape(2, 100, 100)]) == 64  # groups cross tokens
