"""Settings: values from outside, checked by their dataclass, each with where it came from."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar, get_type_hints

from eva_local.errors import ConfigError, refusing
from eva_local.reading import ReadError, did_you_mean, meant

T = TypeVar("T")

# What has options of its own form, and in models.toml a place with an ensemble only.
REQUEST_KEYS = (
    *("stop", "logit_bias", "grammar", "json_schema"),
    *("chat_template", "chat_template_kwargs"),
)
# What is asked for with a conversation only.
CALL_KEYS = ("tools", "tool_choice", "parallel_tool_calls")


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective value and the place it came from."""

    value: object
    origin: str


def keys_of(*kinds: type) -> tuple[str, ...]:
    """Name the fields of settings dataclasses that can be set everywhere, in one form."""
    names = (field.name for kind in kinds for field in fields(kind))
    return tuple(name for name in names if name not in (*REQUEST_KEYS, *CALL_KEYS))


def refuse_unknown(table: Mapping[str, object], known: Collection[str], where: str) -> None:
    """Raise ConfigError for the first key of `table` that is not in `known`."""
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}{key}: unknown key; {did_you_mean(key, known)}")


def user_path(written: str | Path, where: str) -> Path:
    """Return a path that a user wrote, `~` for a home folder; raise ConfigError, naming `where`."""
    if "\0" in str(written):
        raise ConfigError(f"{where}: must be a path, not {str(written)!r}")
    try:
        return Path(written).expanduser()
    except RuntimeError as error:
        problem = "there is no such home folder; write the path in full"
        raise ConfigError(f"{where}: {written}: {problem}") from error


def read_text(path: Path, where: str) -> str:
    """Return the text of a file that a setting names; ConfigError where there is none."""
    problem = f"{where}: {path}: cannot be read"
    try:
        with refusing(problem, ConfigError):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{problem}: not UTF-8 text") from error


def read_settings(
    kinds: Iterable[type],
    table: Mapping[str, object],
    where: Callable[[str], str],
    *,
    text: bool = False,
) -> dict[str, Setting]:
    """Read fields of dataclasses; `where` names a key's place, and with `text` texts are parsed."""
    found: dict[str, Setting] = {}
    for kind in kinds:
        for key in filter(table.__contains__, keys_of(kind)):
            value = table[key]
            if text and isinstance(value, str):
                value = meant(value, get_type_hints(kind)[key])
            try:
                value = getattr(kind(**{key: value}), key)
            except ReadError as error:
                raise placed(error, where(key), key) from error
            found[key] = Setting(value, where(key))
    return found


def placed(error: ReadError, where: str, within: str = "") -> ConfigError:
    """Return the error for the value that stands `where`, of a path that begins `within` it."""
    return ConfigError(f"{where}{error.path.removeprefix(within)}: {error.problem}")


def build(kind: type[T], settings: Mapping[str, Setting]) -> T:
    """Make the dataclass `kind` of its settings and of its own defaults."""
    return kind(**{key: settings[key].value for key in keys_of(kind) if key in settings})
