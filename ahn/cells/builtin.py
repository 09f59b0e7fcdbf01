"""What the three cells of the paper declare. No torch; the cells are files of their own."""

from __future__ import annotations

from ahn.cells.declaration import CellDeclaration, Dims, Gate, State

_STATE = {"state": State(("H", "d", "d"))}  # key dimension first
_WRITE = Gate()  # beta, the write strength
_LOG_DECAY = Gate(dtype="float32")

_DELTA_NET: dict[str, Dims] = {
    "b_proj.weight": ("H", "D"),
    "g_proj.weight": ("H", "D"),
    "o_norm.weight": ("d",),
    "o_proj.weight": ("H", "d", "d"),
}
_DECAY: dict[str, Dims] = {"A_log": ("H",), "dt_bias": ("H",)}

_GATE: Dims = ("D", "H")  # one number per head from a hidden state
_WITH_STATE: Dims = ("H", "d", "d")  # a vector with the state, an outer product, or `o_proj`
#: output gate; `S^T k`, the rank-1 update, `S^T q`; `o_proj`
_DELTA_READ = (_GATE, _WITH_STATE, _WITH_STATE, _WITH_STATE, _WITH_STATE)

GATED_DELTA_NET = CellDeclaration(
    "GatedDeltaNet",
    "ahn.cells.gated_delta_net:GatedDeltaNet",
    gates={"write": _WRITE, "log_decay": _LOG_DECAY},
    states=_STATE,
    # `D` is in every released checkpoint and in no equation
    parameters=_DELTA_NET | _DECAY | {"a_proj.weight": ("H", "D"), "D": ("H",)},
    products_per_token=(_GATE, _GATE),
    products_per_read=_DELTA_READ,
    recurrence="delta_rule",
)
DELTA_NET = CellDeclaration(
    "DeltaNet",
    "ahn.cells.delta_net:DeltaNet",
    gates={"write": _WRITE},
    states=_STATE,
    parameters=_DELTA_NET,
    products_per_token=(_GATE,),
    products_per_read=_DELTA_READ,
    recurrence="delta_rule",
)
MAMBA2 = CellDeclaration(
    "Mamba2",
    "ahn.cells.mamba2:Mamba2",
    # the step size `dt` is kept in float32: rounded to bfloat16 it decays by another amount
    gates={"write": Gate(dtype="float32"), "log_decay": _LOG_DECAY},
    states=_STATE,
    parameters={
        "dt_proj.weight": ("H", "D"),
        "dt_proj.bias": ("H",),
        "g_proj.weight": ("H", "D"),
        "g_proj.bias": ("H",),
        "norm.weight": ("Hd",),
        "o_proj.weight": ("H", "d", "d"),
        **_DECAY,
    },
    products_per_token=(_GATE,),
    # written without looking at what the key already holds
    products_per_read=(_GATE, _WITH_STATE, _WITH_STATE, _WITH_STATE),
    recurrence="outer_products",
)
