"""The words of upstream's command line for the settings of a recipe."""

from collections.abc import Iterator

from megatron_seams.planning import activations
from megatron_seams.planning.derived import is_latent
from megatron_seams.planning.roads import Roads
from megatron_seams.planning.spelling import Spoken


def recipe_words(roads: Roads) -> Iterator[tuple[str, Spoken | str]]:
    """Each setting of the recipe with its words, or with the reason that it has none."""
    given = roads.plan.megatron
    if any(key in given for key in activations.KEYS):
        yield from _activation(roads)
    for key, value in given.items():
        if key in (*activations.KEYS, "multi_latent_attention"):
            continue
        if key == "num_query_groups":
            # Without it upstream ignores the number of groups, and takes that of the heads.
            if is_latent(roads.plan) and value == given.get("num_attention_heads"):
                continue
            yield key, roads.words("group_query_attention", True, f"megatron.{key}")
        yield key, roads.words(key, value, f"megatron.{key}")


def _activation(roads: Roads) -> Iterator[tuple[str, Spoken | str]]:
    given = roads.plan.megatron
    asked = str(given.get("activation_func", "gelu")), bool(given.get("gated_linear_unit"))
    key = next(key for key in activations.KEYS if key in given)
    if asked not in activations.FLAGS:
        gated = "gated" if asked[1] else "not gated"
        yield key, f"no flag for {asked[0]}, {gated}"
        return
    flag = activations.FLAGS[asked]
    if flag is not None:
        yield key, roads.words(flag.removeprefix("--").replace("-", "_"), True, f"megatron.{key}")
