"""Writes into the documentation what the code defines: options, config, presets, state, a page.

`python docs/generate.py` updates all pages; a test fails if one of them is out of date.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mnist_flax.core.config import PRESETS, Config, flag_name
from mnist_flax.engine.options import DataOptions, field_docs

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: (\w+) ?(\w*) -->\n).*?(<!-- end -->)", re.DOTALL)


def update_page(text: str) -> str:
    """The text of a page with its generated parts up to date."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{GENERATORS[m[2]](m[3])}\n\n{m[4]}", text)


def _options(command: str) -> str:
    """The options of a command, those for data last; config.md has the fields of the config."""
    options: Any = importlib.import_module(f"mnist_flax.{command}").Options
    docs, hints = field_docs(options), get_type_hints(options, include_extras=True)
    data_options = {x.name for x in dataclasses.fields(DataOptions)}
    rows = [
        (
            f"`{_option_name(x.name, hints[x.name])}`",
            _type_name(hints[x.name]),
            _default(x),
            docs[x.name],
        )
        for x in sorted(dataclasses.fields(options), key=lambda x: x.name in data_options)
        if x.name in docs
    ]
    return _table(("option", "value", "default", "meaning"), rows)


def _config(_: str) -> str:
    docs = field_docs(Config)
    rows = [
        (f"`{x.name}`", f"{_type_name(x.type)}{_limits(x)}", _default(x), docs[x.name])
        for x in dataclasses.fields(Config)
    ]
    return _table(("field", "type and limits", "default", "meaning"), rows)


def _presets(_: str) -> str:
    """The fields in which presets differ."""
    rows = []
    for field in dataclasses.fields(Config):
        values = [getattr(preset, field.name) for preset in PRESETS.values()]
        if len(set(values)) > 1:
            cells = (f"**{v}**" if v != values[0] else str(v) for v in values)
            rows.append((f"`{field.name}`", *cells))
    return _table(("field", *(f"`{name}`" for name in PRESETS)), rows)


def _state(preset: str) -> str:
    """The content of a checkpoint of a preset, with the names that Orbax uses."""
    leaves = state_leaves(PRESETS[preset])
    width = max(map(len, leaves))
    lines = (f"{name:<{width}}  {dtype:<7}  {shape}" for name, (dtype, shape) in leaves.items())
    return "\n".join(("```text", *lines, "```"))


def state_leaves(config: Config) -> dict[str, tuple[str, str]]:
    """The dtype and shape of each leaf of a run's state."""
    import jax

    from mnist_flax.core import train

    state = jax.eval_shape(lambda: train.create_state(jax.random.key(0), config=config))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            str(leaf.dtype),
            str(list(leaf.shape)),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _option_name(field: str, hint: Any) -> str:
    # Only arguments without a flag have a metavar.
    metavars = (getattr(part, "metavar", None) for part in get_args(hint))
    return next(filter(None, metavars), flag_name(field))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _type_name(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    plain = [part for part in get_args(hint) if part not in (type(None), ...)] or [hint]
    if get_origin(plain[0]) is Literal:
        return _type_name(plain[0])
    return {Path: "path", bool: "flag"}.get(plain[0]) or plain[0].__name__


def _default(field: dataclasses.Field[Any]) -> str:
    """Empty if there is none, or if the meaning states it."""
    if field.default in (dataclasses.MISSING, None, ()):
        return ""
    if isinstance(field.default, bool):
        return "off"
    return f"`{field.default}`"


def _limits(field: dataclasses.Field[Any]) -> str:
    return f", {field.metadata['limits'][2]}" if "limits" in field.metadata else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


GENERATORS: dict[str, Callable[[str], str]] = {
    "options": _options,
    "config": _config,
    "presets": _presets,
    "state": _state,
}


def main() -> None:
    """Updates the pages that are out of date and prints their paths."""
    from mnist_flax import load
    from mnist_flax.evaluate import pad

    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        updated = update_page(text)
        if text != updated:
            page.write_text(updated, encoding="utf-8")
            print(page)
    (DOCS / "digits.html").write_text(pad.render_drawing_page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
