"""Writes into the pages what the code itself knows: options, config, presets, state.

`python docs/generate.py` brings all pages up to date; a test tells when one is not.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from mnist_flax.config import PRESETS, Config, UserError, flag, from_dict

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: (\w+) ?(\w*) -->\n).*?(<!-- end -->)", re.DOTALL)

# What tyro marks an argument by that has no flag.
POSITIONAL = get_args(tyro.conf.Positional[int])[1]


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def filled(page: str) -> str:
    """A page, with what it says of the code brought up to date."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{GENERATORS[m[2]](m[3])}\n\n{m[4]}", page)


def _options(command: str) -> str:
    """The options of a command; those of `run` that are the config's stand elsewhere."""
    kind = importlib.import_module(f"mnist_flax.{command}").Options
    docs, hints = field_docs(kind), get_type_hints(kind, include_extras=True)
    rows = [
        (f"`{_spelled(x.name, hints[x.name])}`", _kind(hints[x.name]), _default(x), docs[x.name])
        for x in dataclasses.fields(kind)
        if x.name in docs
    ]
    return _table(("option", "value", "default", "meaning"), rows)


def _config(_: str) -> str:
    docs = field_docs(Config)
    rows = [
        (f"`{x.name}`", f"{_kind(x.type)}{_limits(x)}", _default(x), docs[x.name])
        for x in dataclasses.fields(Config)
    ]
    return _table(("field", "type and limits", "default", "meaning"), rows)


def _presets(_: str) -> str:
    """The fields in which presets differ."""
    rows = []
    for field in dataclasses.fields(Config):
        values = [getattr(preset, field.name) for preset in PRESETS.values()]
        if len(set(values)) > 1:
            shown = (f"**{v}**" if v != values[0] else str(v) for v in values)
            rows.append((f"`{field.name}`", *shown))
    return _table(("field", *(f"`{name}`" for name in PRESETS)), rows)


def _state(preset: str) -> str:
    """What a checkpoint of a preset holds, by the names that Orbax gives it."""
    leaves = state_leaves(PRESETS[preset])
    width = max(map(len, leaves))
    lines = (f"{name:<{width}}  {dtype:<7}  {shape}" for name, (dtype, shape) in leaves.items())
    return "\n".join(("```text", *lines, "```"))


def state_leaves(config: Config) -> dict[str, tuple[str, str]]:
    """The dtype and shape of each leaf of a run's state."""
    import jax

    from mnist_flax import train

    state = jax.eval_shape(lambda: train.create_state(jax.random.key(0), config=config))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            str(leaf.dtype),
            str(list(leaf.shape)),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def field_docs(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, in one line."""
    definition: Any = ast.parse(inspect.getsource(kind)).body[0]
    found: dict[str, str] = {}
    for field, below in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return found


def _spelled(name: str, hint: Any) -> str:
    return name.upper() if POSITIONAL in get_args(hint) else flag(name)


def _kind(hint: Any) -> str:
    """A type, as people call it."""
    if get_origin(hint) is Annotated:
        return _kind(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    plain = [part for part in get_args(hint) if part not in (type(None), ...)] or [hint]
    return {Path: "path", bool: "flag"}.get(plain[0]) or plain[0].__name__


def _default(field: dataclasses.Field[Any]) -> str:
    """Empty where there is none, or where the meaning tells."""
    if field.default in (dataclasses.MISSING, None, ()):
        return ""
    if isinstance(field.default, bool):
        return "off"
    return f"`{field.default}`"


def _limits(field: dataclasses.Field[Any]) -> str:
    """In a refusal's own words: no number may be -1."""
    if field.type not in (int, float):
        return ""
    try:
        from_dict(dataclasses.asdict(Config()) | {field.name: -1})
    except UserError as refusal:
        return ", " + str(refusal).split(" must be ")[1].split(", but is ")[0]
    raise ValueError(f"{field.name} has no lower limit")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


GENERATORS: dict[str, Callable[[str], str]] = {
    "options": _options,
    "config": _config,
    "presets": _presets,
    "state": _state,
}


def main() -> None:
    """Rewrites the pages that are out of date, and tells which."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if text != filled(text):
            page.write_text(filled(text), encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main()
