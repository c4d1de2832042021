"""The functions that allocate layers whose meaning is known, by the digests of their forms.

Each was read in upstream's source, from 0.10 to its main of August 2026. Where upstream writes one
anew, a person reads what it does and adds its digest, which the refusal of the source names.
"""

from collections.abc import Mapping
from typing import Final

#: Name of a function, method or class -> the digests of its known forms.
KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "ParsedHybridPattern": ("8fb451e39700d189",),
    "_allocate_auto": ("dfa4d24fcbf1ef70",),
    "_allocate_override": ("39c2d42f0832e983",),
    "_fuse_mla_down_proj": ("1f46dfa3a6ace64f",),
    "_init_weights": ("316cf4a952ce67e1", "eb87bc6cc0cbc36c"),
    "_layer_counts_match": ("4af3dc7917d5a8fc",),
    "_select_layers_for_pipeline_parallel": (
        "bfa41b6d16e17b20",
        "ec9fcb083beb5a8e",
        "f4eecb0c4a3b8642",
    ),
    "_set_mtp_layer_number_for_moe_metrics": ("13ed42d9be6f230f",),
    "_validate_pattern": ("b7b8f26d914a2080",),
    "allocate_layers": ("52c70baf97b1da70",),
    "get_hybrid_layer_counts": ("731990bd87516083", "f7b880809214806e"),
    "get_hybrid_total_layer_count": ("44b83b7aebad5b41",),
    "get_hybrid_total_pipeline_segment_count": ("8a50b7ba541b0d37",),
    "get_layer_maps_from_layer_type_list": (
        "3e1029f2cf5db749",
        "bf9678fe2b2677f5",
        "d414afb2d503b36b",
    ),
    "parse_hybrid_pattern": ("d5b75d7d6100ec63",),
    "pattern_from_ratios": ("5ce81673876260bd",),
    "select_pipeline_segment": ("b2f38d527c9d2726", "d9be7e2ca9201de6"),
    "validate_segment_layers": ("ee9095b10d677a76",),
}
