"""The tables of the Swin-Free paper (Koo et al. 2023, arXiv 2306.13776), row by row, with the figures it gives.

`83.x` and the like are as far as a figure can be read; words say what the text states where no figure stands; an empty
string means that nothing is given. Accuracies are top-1 in percent on ImageNet-1K, latencies are of batch 1
on an RTX 3080 (TensorRT 8.5 FP16, PyTorch 1.13 FP32).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from explorer.arch import PRESETS, Arch, parse_name

#: The network that table 1 is about and that the paper compares every other with.
REFERENCE: Final = "Swin-B"
#: Its latencies in milliseconds.
_TENSORRT_MS: Final = 2.1
_TORCH_MS: Final = 14.3
_FIGURE: Final = re.compile(r"\d+\.\d+")
_BELOW: Final = re.compile(r"(\d+) % below Swin-B")
_LEADING: Final = re.compile(r"(\d+)\.[\dx]")


def _ratio(text: str, reference_ms: float) -> float | None:
    """Of a latency in milliseconds, or of a share below Swin-B's; None for words and for figures that are cut off."""
    if _FIGURE.fullmatch(text):
        return float(text) / reference_ms
    below = _BELOW.fullmatch(text)
    return None if below is None else 1 - int(below.group(1)) / 100


@dataclass(frozen=True)
class PaperRow:
    """One row: `label` as the paper has it, the architecture's name, and the paper's figures.

    `flops_g`: 1e9 multiply-adds, those of element-wise operations included. `params_m`: 1e6 deployed parameters.
    """

    label: str
    name: str
    top1: str = ""
    tensorrt_fp16_ms: str = ""
    torch_fp32_ms: str = ""
    flops_g: float | None = None
    params_m: float | None = None

    @property
    def tensorrt_ratio(self) -> float | None:
        """TensorRT latency over Swin-B's, where the paper's figure can be read."""
        return _ratio(self.tensorrt_fp16_ms, _TENSORRT_MS)

    @property
    def torch_ratio(self) -> float | None:
        """PyTorch latency over Swin-B's, where the paper's figure can be read."""
        return _ratio(self.torch_fp32_ms, _TORCH_MS)

    @property
    def top1_group(self) -> int | None:
        """The figure of top-1 before the point, 0 where the training diverged; None where words alone stand.

        All that is sure of `83.x` is that it lies above every `82.x`.
        """
        leading = _LEADING.match(self.top1)
        if leading is not None:
            return int(leading.group(1))
        return 0 if self.top1 == "diverged" else None

    @property
    def arch(self) -> Arch:
        """The architecture, in canonical form."""
        return PRESETS.get(self.name) or parse_name(self.name)


@dataclass(frozen=True)
class ShareRow:
    """One row of table 1: the share of Swin-B's run time that `label` takes, in words and figures as the paper gives it.

    `groups`: those of `explorer.latency.profile.GROUPS` that it stands for.
    """

    label: str
    groups: tuple[str, ...]
    tensorrt_fp16: str = ""
    torch_fp32: str = ""


TABLE_1: Final = (
    ShareRow("window shift", ("window shift",), "8.7 %", "4.4 %"),
    ShareRow("LayerNorm and GELU", ("norm", "activation"), "about 24 %"),
)
TABLE_4: Final = (
    PaperRow("case 1: 1,1,1,1", "Swin-B", "83.4"),
    PaperRow("case 2: 0,1,1,1", "Swin-B-S0111", "82.x"),
    PaperRow("case 3: 0,0,1,1", "Swin-B-S0011", "82.x"),
    PaperRow("case 4: 0,0,0,1", "Swin-B-S0001", "diverged"),
    PaperRow("case 5: 0,0,1,0", "Swin-B-S0010", "82.x"),
    PaperRow("case 6: 0,1,0,0", "Swin-B-S0100", "diverged"),
    PaperRow("case 7: 1,0,0,0", "Swin-B-S1000", "diverged"),
    PaperRow("case 8: 0,0,0,0", "Swin-B-S0000", "diverged"),
)
TABLE_5: Final = (
    PaperRow("case 1: 7,7,7,7", "Swin-B-S0000", "diverged", torch_fp32_ms="slowest, as 3 and 4"),
    PaperRow("case 2: 7,7,14,7", "Swin-B-W7.7.14.7-S0000", "83.x", torch_fp32_ms="faster than case 1"),
    PaperRow("case 3: 7,14,7,7", "Swin-B-W7.14.7.7-S0000", "81.x", torch_fp32_ms="as case 1"),
    PaperRow("case 4: 14,7,7,7", "Swin-B-W14.7.7.7-S0000", "81.x", torch_fp32_ms="as case 1"),
    PaperRow("case 5: 7,14,14,7", "Swin-Free-B", "83.x, among the best", torch_fp32_ms="among the fastest"),
    PaperRow("case 6: 14,7,14,7", "Swin-B-W14.7.14.7-S0000", "83.x", torch_fp32_ms="among the fastest"),
    PaperRow("case 7: 14,14,7,7", "Swin-B-W14.14.7.7-S0000", "81.x", torch_fp32_ms="worse than 5 and 6"),
    PaperRow(
        "case 8: 14,14,14,7",
        "Swin-B-W14.14.14.7-S0000",
        "83.x, just below case 5",
        torch_fp32_ms="no better than 5 or 6",
    ),
)


def _row(
    name: str,
    flops_g: float | None,
    params_m: float | None,
    top1: str = "",
    tensorrt_fp16_ms: str = "",
    torch_fp32_ms: str = "",
) -> PaperRow:
    return PaperRow(name.removesuffix("-224"), name, top1, tensorrt_fp16_ms, torch_fp32_ms, flops_g, params_m)


TABLE_6: Final = (
    _row("Swin-B", 15.9, 88.7, "83.4", "2.1", "14.3"),
    _row("Swin-B-BR", 15.6, 88.7, "below Swin-Free-B-BR", "above Swin-Free-B-BR"),
    _row("SwinV2-B-224", None, None, "as Swin-Free-B", "far above Swin-Free-B"),
    _row("Swin-Free-B", 16.8, 99.4, "above 83.4", "2.0", "12.x"),
    _row("Swin-Free-T", 5.0, 31.6, "82.x, above Swin-T"),
    _row("Swin-Free-S", 9.7, 58.3, "83.x, above Swin-S"),
    _row("Swin-Free-T-BR", 4.8, 31.6, "as Swin-Free-T", "below Swin-Free-T", "above Swin-Free-T"),
    _row("Swin-Free-S-BR", 9.5, 58.3, "as Swin-Free-S", "below Swin-Free-S"),
    _row("Swin-Free-B-BR", 16.4, 99.4, "just below Swin-Free-B", "19 % below Swin-B"),
    _row("Swin-Free-B-DR10", 11.3, 69.3),
    _row("Swin-Free-B-DR12", 12.7, 76.8, "as Swin-Free-B", "1.5"),
    _row("Swin-Free-B-DR14", 14.0, 84.4),
    _row("Swin-Free-B-DR16", 15.4, 91.9),
    _row("Swin-Free-B-BR-DR12", 12.4, 76.9, "83.3", "1.3"),
    _row("Swin-Free-B-BR-DR14", 13.7, 84.4, "83.7", "1.4"),
    _row("Swin-Free-B-BR-DR16", 15.1, 91.9),
)

#: Single comparisons of top-1 that figures or the text state, beside the groups: the more accurate network first. `as` states
#: no order.
STATED: Final = MappingProxyType(
    {
        "table4": (),
        "table5": (("Swin-Free-B", "Swin-B-W14.14.14.7-S0000"),),
        "table6": (
            ("Swin-Free-B-BR", "Swin-B-BR"),
            ("Swin-Free-B", "Swin-B"),
            ("Swin-Free-T", "Swin-T"),
            ("Swin-Free-S", "Swin-S"),
            ("Swin-Free-B", "Swin-Free-B-BR"),
            ("Swin-Free-B-BR-DR14", "Swin-B"),
            ("Swin-B", "Swin-Free-B-BR-DR12"),
        ),
    }
)

TABLES: Final = MappingProxyType({"table4": TABLE_4, "table5": TABLE_5, "table6": TABLE_6})
