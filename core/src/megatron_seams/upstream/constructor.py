"""The constructor of upstream's hybrid stack: only statements of a known form.

The part before the loop keeps arguments and takes the list of layers; the loop makes one layer
for each entry, by a chain of branches, and appends it; what follows touches no layer. Any other
statement may build another model than the chain says, and is refused.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NoReturn

import attrs

from megatron_seams.upstream.allocation import check_known
from megatron_seams.upstream.ast_queries import functions, is_docstring, mentions
from megatron_seams.upstream.forms import Form, first_match, form
from megatron_seams.upstream.slots import BUILD, SUBMODULES
from megatron_seams.upstream.source import SourceFile

#: Upstream's names for the list of layers.
LISTS: Final = ("layer_type_list", "layer_config_list")
#: Defaults of parameters; that of any other is None.
_DEFAULTS: Final[Mapping[str, object]] = {
    "mamba_ssm_ngroups": 8,
    "residual_in_fp32": False,
    "hybrid_attention_ratio": 0.0,
    "hybrid_mlp_ratio": 0.0,
    "pre_process": True,
    "post_process": True,
    "post_layer_norm": True,
    "pp_layer_offset": 0,
    "is_mtp_layer": False,
}


def _forms(*texts: str) -> tuple[Form, ...]:
    return tuple(form(text) for text in texts)


_RATIOS = "self.config.num_layers, self.hybrid_attention_ratio, self.hybrid_mlp_ratio"
_ALLOCATED = f"allocate_layers({_RATIOS}, self.hybrid_override_pattern)"
_SELECTED = "self._select_layers_for_pipeline_parallel"
#: What stands before the loop in this order, each at most once; of a line, one.
_IN_ORDER: Final = (
    _forms("super().__init__(config=config)"),
    _forms(f"layer_type_list = {_ALLOCATED}", f"self.layer_type_list = {_ALLOCATED}"),
    _forms("pp_layer_offset = 0"),
    _forms(
        *(
            f"if {size} > 1:\n    pp_layer_offset, {listed} = {_SELECTED}({listed})"
            for size in (
                "self.pp_group.size()",
                "parallel_state.get_pipeline_model_parallel_world_size()",
            )
            for listed in ("layer_type_list", "self.layer_type_list")
        )
    ),
    _forms("self.layers = nn.ModuleList()"),
)
#: What may stand anywhere before the loop.
_KEEPS, _EMPTY = _forms("self.GIVEN = GIVEN", "self.EMPTY = None")
_BEFORE: Final = _forms(
    "self.pp_group = GIVEN.pp",
    "self.tp_group = GIVEN.tp",
    "assert GIVEN is not None",
    "if getattr(self.config, 'mla_down_proj_fusion', False):\n"
    "    submodules = self._fuse_mla_down_proj(submodules)",
)
_NUMBER = form("NUMBER = INDEX + 1 + pp_layer_offset")
_QUANTISED = "context(self.config, INDEX + pp_layer_offset, is_init=True)"
_CONTEXTS: Final = _forms(
    "CONTEXT = get_fp8_context(self.config, INDEX, is_init=True)",
    f"CONTEXT = get_fp8_{_QUANTISED}",
    f"if self.config.fp8:\n    CONTEXT = get_fp8_{_QUANTISED}\n"
    f"elif self.config.fp4:\n    CONTEXT = get_fp4_{_QUANTISED}\n"
    "else:\n    CONTEXT = nullcontext()",
)
#: What may follow the chain in the loop: the same for every layer.
_ALIKE: Final = _forms(
    "if self.is_mtp_layer and self.mtp_layer_number is not None:\n"
    "    self._set_mtp_layer_number_for_moe_metrics(layer, self.mtp_layer_number)",
    *(
        f"if self.config.{switch}:\n    layer = WRAPPER({given}layer=layer)"
        for switch in ("enable_hyper_connections", "enable_mhc_connections")
        for given in ("", "config=self.config, ")
    ),
)
_APPENDS = form("self.layers.append(layer)")
#: What may follow the loop although it names the layers.
_AFTER: Final = _forms(
    "self.num_layers_per_pipeline_rank = len(self.layers)",
    "if self.post_process and self.post_layer_norm:\n"
    "    self.final_norm = TENorm(config=self.config, hidden_size=self.config.hidden_size,"
    " eps=self.config.layernorm_epsilon)",
    "if self.config.cuda_graph_impl == 'local':\n    annotate_first_last_layer(self.layers)",
    "self.apply(partial(_init_weights, n_layer=self.config.num_layers))",
    "self.apply(partial(_init_weights, n_layer=self.config.num_layers,"
    " initializer_range=self.config.init_method_std))",
)
#: The beginning of a setting that adds parts to a stack beside its layers.
_SWITCH: Final = "self.config.enable_"
#: What such parts are made with.
_SIMPLE: Final = (
    *(ast.If, ast.Assign, ast.Expr, ast.Call, ast.Constant, ast.keyword, ast.expr_context),
    *(ast.BoolOp, ast.Compare, ast.UnaryOp, ast.BinOp),
    *(ast.boolop, ast.cmpop, ast.unaryop, ast.operator),
)
#: Functions and methods whose meaning the forms rely on.
_FUNCTIONS: Final = ("_init_weights",)
_METHODS: Final = (
    "_fuse_mla_down_proj",
    "_select_layers_for_pipeline_parallel",
    "_set_mtp_layer_number_for_moe_metrics",
)


@attrs.frozen(kw_only=True)
class Loop:
    """The loop that builds the layers.

    Attributes:
        index: The variable that counts them from 0.
        key: The variable that holds what each is.
        chain: The first branch.
        numbers: The expressions for a layer's global number, as text.
        parameters: The constructor's.
    """

    index: str
    key: str
    chain: ast.If = attrs.field(repr=False)
    numbers: frozenset[str]
    parameters: frozenset[str]


def read_constructor(file: SourceFile, stack: ast.ClassDef, constructor: ast.FunctionDef) -> Loop:
    """Read the constructor.

    Args:
        file: The module of the stack.
        stack: Its class.
        constructor: Its constructor.

    Raises:
        SurfaceUnknown: A statement is of no known form.
    """
    return _Constructor(file, stack, constructor).loop()


class _Constructor:
    """One reading of a constructor."""

    def __init__(self, file: SourceFile, stack: ast.ClassDef, constructor: ast.FunctionDef) -> None:
        self._file = file
        self._stack = stack
        self._node = constructor
        self._parameters = frozenset(_parameters(file, constructor))

    def loop(self) -> Loop:
        """The loop; raises SurfaceUnknown as :func:`read_constructor` does."""
        body = [node for node in self._node.body if not is_docstring(node)]
        loops = [node for node in body if isinstance(node, ast.For) and mentions(node, BUILD)]
        self._file.require(len(loops) == 1, f"{len(loops)} loops that build layers")
        at = body.index(loops[0])
        self._check_before(body[:at])
        found = self._read_loop(loops[0])
        for node in body[at + 1 :]:
            self._check_after(node)
        self._check_set_once()
        for function in (
            *functions(self._stack.body, *_METHODS),
            *functions(self._file.tree.body, *_FUNCTIONS),
        ):
            check_known(self._file, function)
        return found

    def _refuse(self, node: ast.stmt, where: str) -> NoReturn:
        raise self._file.unknown(f"line {node.lineno} {where} is not understood")

    def _check_before(self, statements: Sequence[ast.stmt]) -> None:
        """Check what stands before the loop."""
        seen = [-1]
        for node in statements:
            rank = next((at for at, known in enumerate(_IN_ORDER) if _is_of(node, known)), None)
            if rank is not None:
                if rank <= seen[-1]:
                    self._refuse(node, "of the constructor, out of its order,")
                seen.append(rank)
            elif not self._is_kept(node) and not _is_of(node, _BEFORE):
                self._refuse(node, "of the constructor")
        self._file.require(
            seen[1:2] == [0] and seen[-1] == len(_IN_ORDER) - 1,
            "the constructor makes no empty list of layers",
        )
        # Either the caller decides on the layers and on where they begin, or upstream's functions.
        allocated = 1 in seen
        given = "pp_layer_offset" in self._parameters
        self._file.require(
            (2 in seen) != given
            and allocated != any(name in self._parameters for name in LISTS)
            and (3 not in seen or allocated),
            "the layers of a stage are neither given nor selected as is known",
        )

    def _is_kept(self, node: ast.stmt) -> bool:
        """Whether a statement keeps an argument, or makes an attribute that is empty."""
        if (names := _KEEPS.match(node)) is not None:
            return names["GIVEN"] in self._parameters and names["GIVEN"] != "layers"
        if (names := _EMPTY.match(node)) is not None:
            return names["EMPTY"] not in {*self._parameters, *LISTS, "config", "layers"}
        return False

    # --- the loop -----------------------------------------------------------------------------

    def _read_loop(self, loop: ast.For) -> Loop:
        """The loop, every statement of which is of a known form."""
        index, key = self._loops_over(loop)
        rest = list(loop.body)
        numbers = {f"{index} + 1 + pp_layer_offset"}
        contexts: set[str] = set()
        if names := _NUMBER.match(rest[0]):
            self._check_names(rest[0], names, index, key)
            numbers.add(names["NUMBER"])
            rest.pop(0)
        for known in _CONTEXTS:
            if rest and (names := known.match(rest[0])):
                self._check_names(rest[0], names, index, key)
                contexts.add(names["CONTEXT"])
                self._file.require(
                    names["CONTEXT"] not in numbers, "one name for a number and a context"
                )
                rest.pop(0)
                break
        chain = self._chain(rest.pop(0), contexts) if rest else None
        if chain is None or not rest or _APPENDS.match(rest[-1]) is None:
            raise self._file.unknown(f"line {loop.lineno}: the loop appends no layer at its end")
        for node in rest[:-1]:
            if not isinstance(node, ast.Pass) and not _is_of(node, _ALIKE):
                self._refuse(node, "of the loop")
        return Loop(
            index=index,
            key=key,
            chain=chain,
            numbers=frozenset(numbers),
            parameters=self._parameters,
        )

    def _loops_over(self, loop: ast.For) -> tuple[str, str]:
        """The names of the loop's variables: the count, and what a layer is."""
        match loop:
            case ast.For(
                target=ast.Tuple(elts=[ast.Name(id=index), ast.Name(id=key)]),
                iter=ast.Call(
                    func=ast.Name(id="enumerate"),
                    args=[
                        ast.Attribute(value=ast.Name(id="self"), attr=listed) | ast.Name(id=listed)
                    ],
                    keywords=[],
                ),
                orelse=[],
            ) if listed in LISTS and index != key:
                taken = {*self._parameters, *LISTS, "pp_layer_offset", "layer", SUBMODULES}
                if not {index, key} & taken:
                    return index, key
        raise self._file.unknown(f"line {loop.lineno} does not loop over the list of layers")

    def _check_names(self, node: ast.stmt, names: Mapping[str, str], index: str, key: str) -> None:
        """Check that a statement of the loop counts by its index and binds a name of its own."""
        bound = [name for place, name in names.items() if place != "INDEX"]
        taken = {*self._parameters, *LISTS, "pp_layer_offset", "layer", "self", index, key}
        if names["INDEX"] != index or taken & set(bound):
            self._refuse(node, "of the loop")

    def _chain(self, node: ast.stmt, contexts: set[str]) -> ast.If:
        """The chain of branches, which may be in the context that was made before it."""
        match node:
            case ast.If() if not contexts:
                return node
            case ast.With(
                items=[ast.withitem(context_expr=ast.Name(id=name), optional_vars=None)],
                body=[ast.If() as chain],
            ) if name in contexts:
                return chain
            case ast.With(
                items=[
                    ast.withitem(
                        context_expr=ast.Call(
                            func=ast.Name(id="nullcontext"), args=[], keywords=[]
                        ),
                        optional_vars=None,
                    )
                ],
                body=[ast.If() as chain],
            ) if not contexts:
                return chain
        raise self._file.unknown(f"line {node.lineno} of the loop is not understood")

    # --- what follows -------------------------------------------------------------------------

    def _check_after(self, node: ast.stmt) -> None:
        """Check that a statement after the loop reaches no layer."""
        if _is_of(node, _AFTER):
            return
        match node:
            # Parts of a stack that a setting asks for, beside its layers.
            case ast.If(test=test) if _SWITCH in ast.unparse(test):
                pass
            case _:
                self._refuse(node, "of the constructor, after the loop,")
        owners: set[int] = set()
        for part in ast.walk(node):
            match part:
                case ast.Attribute(value=ast.Name(id="self") as owner, attr=name, ctx=ast.Load()):
                    owners.add(id(owner))
                    known = name not in ("layers", *LISTS)
                case ast.Attribute(value=ast.Name(id="self") as owner, attr=name):
                    owners.add(id(owner))
                    known = name not in {"config", "layers", *LISTS, *self._parameters}
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self"))):
                    known = False
                case ast.Call(func=ast.Name(id="setattr"), args=[target, *_]):
                    known = isinstance(target, ast.Attribute) and target.attr != "config"
                case ast.Name(id="self"):
                    # Breadth first: the attribute that it may be part of was seen before it.
                    known = id(part) in owners
                case ast.Name(id=name):
                    known = name not in ("layer", SUBMODULES, *LISTS)
                case ast.Attribute(ctx=context):
                    known = isinstance(context, ast.Load)
                case _:
                    known = isinstance(part, _SIMPLE)
            if not known:
                self._refuse(node, "of the constructor, after the loop,")

    def _check_set_once(self) -> None:
        """Check that no attribute is set twice, and that nothing else changes the layers."""
        inside = list(ast.walk(self._node))
        stored: Counter[str] = Counter()
        for node in inside:
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    stored[name] += 1
        twice = {name for name, count in stored.items() if count > 1} - set(LISTS)
        self._file.require(not twice, f"self.{', self.'.join(sorted(twice))} is set twice")
        own = {id(part) for part in inside}
        for node in ast.walk(self._stack):
            match node:
                case ast.Attribute(
                    value=ast.Name(id="self"), attr="layers", ctx=ast.Store() | ast.Del()
                ):
                    known = id(node) in own
                case ast.Subscript(value=ast.Attribute(attr="layers"), ctx=ast.Store() | ast.Del()):
                    known = False
                case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr="layers")):
                    known = id(node) in own
                case _:
                    continue
            self._file.require(known, f"line {node.lineno} changes the layers")


def _is_of(node: ast.stmt, known: Sequence[Form]) -> bool:
    """Whether a statement is of one of these forms."""
    return first_match(node, known) is not None


def _parameters(file: SourceFile, constructor: ast.FunctionDef) -> Iterator[str]:
    """The names of the parameters, each of which has its known default."""
    given = constructor.args
    file.require(
        not (given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg)
        and [argument.arg for argument in given.args[:3]] == ["self", "config", SUBMODULES],
        "the constructor is not given a configuration and submodules first",
    )
    names = [argument.arg for argument in given.args]
    defaults = [None] * (len(names) - len(given.defaults)) + list(given.defaults)
    for name, default in zip(names, defaults, strict=True):
        if default is not None:
            match default:
                case ast.Constant(value=value):
                    known = _DEFAULTS.get(name)
                    file.require(
                        value == known and type(value) is type(known),
                        f"line {default.lineno}: {name} has the default {value!r}",
                    )
                case _:
                    raise file.unknown(f"line {default.lineno}: the default of {name}")
        yield name
