"""The configuration: every value, every mistake, and which place wins."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eva_local.config.config import DEFAULT_KEYS, Config, load_config, shipped, user_file
from eva_local.config.specs import (
    EnsembleSpec,
    FusionSettings,
    HubSource,
    LoadSettings,
    PathSource,
    WheelSource,
)
from eva_local.errors import ConfigError, InputError
from eva_local.types import Sampling

SHA = "ab" * 32
MODELS = f"""
schema = 1

[models.a]
path = "a.gguf"

[models.b]
hub = "owner/repository"
file = "sub/b.gguf"
revision = "abc"
licence = "MIT"
n_ctx = 1024

[models.c]
wheel = "wheel-part{{n}}==1.0"
file = "wheel_part{{n}}/data.part{{i:02}}"
parts = 3
sha256 = "{SHA}"
size = 12
"""

# The names that can be run: those of the shipped file, and three of these tests.
_SHIPPED = load_config(shipped("models.toml"), {})
KNOWN = ", ".join(sorted({*_SHIPPED.models, *_SHIPPED.ensembles, "a", "b", "c"}))
RULES = '"equal" or "prompt-perplexity" or "running" or "thought"'


def write(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, more: str = "", **overrides: object) -> Config:
    return load_config(write(folder, MODELS + more), {}, overrides)


def problem(folder: Path, text: str) -> str:
    """Return the one line that a wrong file gives, without the file's name at its start."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_sources_and_fields(tmp_path: Path) -> None:
    config = load(tmp_path)
    a, b, c = (config.models[name] for name in "abc")
    assert a.source == PathSource(tmp_path / "a.gguf")
    assert a.load == LoadSettings()
    assert b.source == HubSource("owner/repository", "sub/b.gguf", "abc")
    assert (b.licence, b.sha256, b.size, b.load.n_ctx) == ("MIT", None, None, 1024)
    assert isinstance(c.source, WheelSource)
    assert c.source.part(0) == ("wheel-part1==1.0", "wheel_part1/data.part00")
    assert c.source.part(2) == ("wheel-part3==1.0", "wheel_part3/data.part02")
    assert (c.sha256, c.size) == (SHA, 12)


def test_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(write(tmp_path, 'schema = 1\n[models.a]\npath = "~/a.gguf"'), {})
    assert config.models["a"].source == PathSource(tmp_path / "home" / "a.gguf")


def test_ensemble_with_all_its_keys(tmp_path: Path) -> None:
    ensemble = load(
        tmp_path,
        """
        [defaults]
        combine = "geometric"
        candidates = 0
        [ensembles.e]
        members = ["a", "b"]
        pivot = "b"
        description = "two"
        mapping = "eva"
        filter = "off"
        candidates = 99
        weights = [2.5, 1]
        """,
    ).ensemble("e")
    assert [member.name for member in ensemble.members] == ["a", "b"]
    assert (ensemble.pivot, ensemble.pivot_index, ensemble.description) == ("b", 1, "two")
    assert ensemble.fusion == FusionSettings(
        combine="geometric", mapping="eva", filter="off", candidates=99, weights=(2.5, 1.0)
    )


def test_pivot_is_the_first_member_and_weights_may_be_a_list(tmp_path: Path) -> None:
    text = '[ensembles.e]\nmembers = ["b", "a"]\nweights = [0, 3]'
    ensemble = load(tmp_path, text).ensemble("e")
    assert ensemble.pivot == "b"
    assert ensemble.fusion.weights == (0.0, 3.0)


def test_one_model_may_be_a_member_twice(tmp_path: Path) -> None:
    ensemble = load(tmp_path, '[ensembles.e]\nmembers = ["a", "a"]').ensemble("e")
    assert [member.name for member in ensemble.members] == ["a", "a-2"]
    one, other = ensemble.members
    assert one.is_of(other)
    assert ensemble.pivot_index == 0


def test_name_of_a_model_is_that_model_alone(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.ensemble("b") == EnsembleSpec("b", (config.models["b"],), "b")


def test_default_ensemble(tmp_path: Path) -> None:
    assert load(tmp_path).default_ensemble == "a"
    one = '[ensembles.e]\nmembers = ["b"]\n'
    assert load(tmp_path, one).default_ensemble == "e"
    assert load(tmp_path, one + '[defaults]\nensemble = "c"').ensemble().name == "c"
    # That of the shipped file, made anew, is no new one.
    assert load(tmp_path, '[ensembles.demo]\nmembers = ["b"]\n' + one).default_ensemble == "e"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("[default]", "default: unknown key; did you mean defaults?"),
        ("[defaults]\nn_ctxx = 1", "defaults.n_ctxx: unknown key; did you mean n_ctx?"),
        ("[defaults]\nstop = []", "defaults.stop: unknown key; did you mean top_p or top_k?"),
        ("[defaults]\nn_ctx = 0", "defaults.n_ctx: must be from 1 to 16777216, not 0"),
        ('[defaults]\nn_ctx = "1"', "defaults.n_ctx: must be a whole number, not '1'"),
        ("[defaults]\nn_ctx = true", "defaults.n_ctx: must be a whole number, not true"),
        ("[defaults]\nn_ctx = 1.0", "defaults.n_ctx: must be a whole number, not 1.0"),
        ("[defaults]\nswa_full = 1", "defaults.swa_full: must be true or false, not 1"),
        ("[defaults]\nmin_p = nan", "defaults.min_p: must be a number, not nan"),
        ("[defaults]\nmin_p = 2", "defaults.min_p: must be in [0, 1), not 2"),
        ("[defaults]\ntensor_split = 1", "defaults.tensor_split: must be a list of numbers"),
        ("[defaults]\ntensor_split = [-1]", "defaults.tensor_split[0]: must be at least 0, not -1"),
        ('[defaults]\nkv_type = "f17"', 'defaults.kv_type: must be "f16" or "f32" or "q4_0" or'),
        ("[defaults]\nseed = {}", 'defaults.seed: must be a whole number or "random", not {}'),
        ("[defaults]\nfilter_n = 0", "defaults.filter_n: must be at least 1, not 0"),
        ("[defaults]\nweights = [1]", "defaults.weights: can be no list here"),
        ('[defaults]\ndrafter = "a"', "defaults.drafter: must be one of auto, off, ngram; name a"),
        (
            '[ensembles.e]\nmembers = ["a"]\ndrafter = "b"',
            "ensembles.e: drafter b is no member of e; known are: a, auto, ngram, off",
        ),
        ("[models.d]", "models.d: has no source; give exactly one of path, hub or wheel"),
        ('[models.d]\npath = "x"\nhub = "o/r"', "models.d: has path and hub; give exactly one"),
        ('[models.d]\npath = "x"\nparts = 2', "models.d.parts: does not go with path"),
        ('[models.d]\nhub = "o/r"', "models.d.file: is missing"),
        ('[models.d]\nhub = "o"\nfile = "x"', "models.d.hub: must be OWNER/REPOSITORY, not 'o'"),
        ('[models.d]\nhub = "o/r"\nfile = "/x"', "models.d.file: must be a relative path"),
        ('[models.d]\nhub = "o/r"\nfile = "a/../../x"', "models.d.file: must be a relative path"),
        ('[models.d]\nwheel = "w==1"\nfile = "x"', "models.d.sha256: is missing"),
        ('[models.d]\nwheel = "w"\nfile = "x"', "models.d.wheel: must be NAME==VERSION, not 'w'"),
        ('[models.d]\nwheel = "-r==1"\nfile = "x"', "models.d.wheel: must be NAME==VERSION"),
        ('[models.d]\nwheel = "w=={k}"\nfile = "x"', "models.d.wheel: or file has a field that"),
        ('[models.d]\nwheel = "w==1"\nfile = "x{n[0]}"', "models.d.wheel: or file has a field"),
        (
            '[models.d]\npath = "~nosuchuser/x"',
            "models.d.path: ~nosuchuser/x: there is no such home",
        ),
        ('[models.d]\npath = "a\\u0000b"', "models.d.path: must be a path, not 'a"),
        ('[models.d]\nwheel = "w==1"\nfile = "x"\nparts = 2', "models.d.parts: needs {n} or {i}"),
        ('[models.d]\nwheel = "w==1"\nfile = "x"\nparts = 0', "models.d.parts: must be from 1 to"),
        # Each of them would be named.
        ('[models.d]\nwheel = "w=={n}"\nfile = "x"\nparts = 2147483648', "models.d.parts: must be"),
        ('[models.d]\npath = "x"\nsha256 = "abc"', "models.d.sha256: must be 64 hexadecimal"),
        ('[models.d]\npath = "x"\nsize = -1', "models.d.size: must be at least 1, not -1"),
        ('[models.d]\npath = ""', "models.d.path: must be a text that is not empty, not ''"),
        ('[models.d]\npath = "x"\nlicense = "MIT"', "models.d.license: unknown key; did you mean"),
        ('[models.d]\npath = "x"\nmain_gpu = -2', "models.d.main_gpu: must be at least -1"),
        ('[models."d/e"]\npath = "x"', "models.d/e: a name is letters, digits"),
        ("[ensembles.e]", "ensembles.e.members: is missing"),
        ("[ensembles.e]\nmembers = []", "ensembles.e.members: must be a list of at least one"),
        ('[ensembles.e]\nmembers = ["z"]', "ensembles.e.members: there is no model 'z'; known are"),
        (
            "[ensembles.e]\nmembers = [1]",
            "ensembles.e.members[0]: must be a text or an object, not 1",
        ),
        ('[ensembles.a]\nmembers = ["a"]', "ensembles.a: a model has this name already"),
        ('[ensembles.e]\nmembers = ["a"]\npivot = "b"', "ensembles.e: pivot 'b' is no member"),
        ('[ensembles.e]\nmembers = ["a"]\nspace = "x"', 'ensembles.e.space: must be "bytes" or'),
        ('[ensembles.e]\nmembers = ["a"]\nmap = "x"', "ensembles.e.map: unknown key; did you mean"),
        ('[ensembles.e]\nmembers = ["a"]\nweights = [-1]', "ensembles.e.weights: must have a sum"),
        ('[ensembles.e]\nmembers = ["a"]\nweights = [nan]', "ensembles.e.weights[0]: must be "),
        ('[ensembles.e]\nmembers = ["a"]\nweights = [0]', "ensembles.e.weights: must have a sum"),
        (
            '[ensembles.e]\nmembers = ["a", "b"]\nweights = [1e308, 1e308]',
            "ensembles.e.weights: must have a sum that is finite",
        ),
        (
            '[ensembles.e]\nmembers = ["a"]\nweights = [1, 2]',
            "ensembles.e: weights must be one for each of a, not 2",
        ),
        (
            '[ensembles.e]\nmembers = ["a"]\nweights = "x"',
            'ensembles.e.weights: must be "equal" or',
        ),
        (
            '[ensembles.e]\nmembers = ["a"]\nweights = {a=1}',
            f"ensembles.e.weights: must be {RULES} or a list of numbers, not ",
        ),
        ("[models.d]\npath = 3", "models.d.path: must be a text that is not empty, not 3"),
        ('[models.d]\npath = "x"\nsize = "1"', "models.d.size: must be a whole number, not '1'"),
        (
            '[models.d]\npath = "x"\nlicence = 1',
            "models.d.licence: must be a text that is not empty, not 1",
        ),
        ('[models.d]\npath = "x"\nn_ctx = 0', "models.d.n_ctx: must be from 1 to 16777216, not 0"),
        (
            '[ensembles.e]\nmembers = ["a"]\npivot = 1',
            "ensembles.e.pivot: must be a text that is not empty, not 1",
        ),
        (
            '[ensembles.e]\nmembers = ["a"]\nweights = true',
            f"ensembles.e.weights: must be {RULES} or a list of numbers, not true",
        ),
        ('[ensembles.e]\nmembers = ["a"]\nstop = [1]', "ensembles.e.stop[0]: must be a text"),
        ("models = ", "not valid TOML: Invalid value (at end of document)"),
        ('[defaults]\nensemble = "z"', "defaults.ensemble: there is no ensemble or model 'z'; kno"),
        ("[[ensembles]]", "ensembles: must be tables [ensembles.NAME]"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(tmp_path: Path, more: str, expected: str) -> None:
    assert problem(tmp_path, MODELS + more).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schema = 2", "schema: must be 1"),
        ("schema = 1\nmodels = 1", "models: must be tables [models.NAME]"),
        ("schema = 1\n[models]\na = 1", "models.a: must be a table"),
        ("schema = 1\ndefaults = 1", "defaults: must be a table"),
        ("schema = 1\n\nx = = 1", "not valid TOML: Invalid value (at line 3, column 5)"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert problem(tmp_path, text).startswith(expected)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {})
    path = tmp_path / "latin.toml"
    path.write_bytes(b'schema = 1 # \xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8 text"):
        load_config(path, {})


def test_unknown_names_list_the_nearest(tmp_path: Path) -> None:
    config = load(tmp_path, '[ensembles.demos]\nmembers = ["a"]')
    with pytest.raises(
        ConfigError, match="no ensemble or model 'demoo'; did you mean demo or demos"
    ):
        config.ensemble("demoo")
    with pytest.raises(
        ConfigError, match="command line --ensemble: there is no ensemble or model 'x'"
    ):
        load(tmp_path, ensemble="x")


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        MODELS + "[defaults]\nn_ctx = 2\nn_batch = 2\nthreads = 2\n"
        '[ensembles.e]\nmembers = ["a"]\ncandidates = 2',
    )
    environ = {"EVA_LOCAL_N_CTX": "3", "EVA_LOCAL_N_BATCH": "3", "EVA_LOCAL_CANDIDATES": "3"}
    config = load_config(path, environ, {"n_ctx": 4, "seed": None})
    assert config.models["a"].load == LoadSettings(n_ctx=4, n_batch=3, threads=2)
    # b has an n_ctx of its own, which the command line beats too.
    assert config.models["b"].load == LoadSettings(n_ctx=4, n_batch=3, threads=2)
    assert config.ensemble("e").fusion.candidates == 3
    origins = {key: setting.origin for key, setting in config.settings.items()}
    assert tuple(origins) == DEFAULT_KEYS
    assert origins["n_ctx"] == "command line --n-ctx"
    assert origins["n_batch"] == "environment EVA_LOCAL_N_BATCH"
    assert origins["threads"] == f"{path}: defaults.threads"
    assert origins["seed"] == "default"


def test_what_the_chosen_ensemble_or_model_says_itself_is_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        MODELS + '[defaults]\ngate = 0.9\n[ensembles.e]\nmembers = ["a", "b"]\ncandidates = 2\n'
        "space = 'bytes'\ntemperature = 0.5\nweights = [2, 1]",
    )

    def shown(**overrides: object) -> dict[str, tuple[object, str]]:
        config = load_config(path, {}, overrides)
        assert tuple(config.settings) == DEFAULT_KEYS
        return {key: (one.value, one.origin) for key, one in config.settings.items()}

    found = shown(ensemble="e", candidates=3)
    assert found["space"] == ("bytes", f"{path}: ensembles.e.space")
    assert found["temperature"] == (0.5, f"{path}: ensembles.e.temperature")
    assert found["weights"] == ((2.0, 1.0), f"{path}: ensembles.e.weights")
    assert found["candidates"] == (3, "command line --candidates")
    assert found["gate"] == (0.9, f"{path}: defaults.gate")
    assert shown(ensemble="b")["n_ctx"] == (1024, f"{path}: models.b.n_ctx")


def test_model_settings_beat_defaults_of_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "[defaults]\nn_ctx = 77")
    assert (config.models["a"].load.n_ctx, config.models["b"].load.n_ctx) == (77, 1024)


def test_every_key_can_be_set_in_the_environment(tmp_path: Path) -> None:
    texts = {
        "ensemble": "b",
        "tensor_split": "3,1",
        "flash_attention": "on",
        "kv_type": "q8_0",
        "swa_full": "off",
        "batch_invariant": "on",
        "temperature": "0.5",
        "top_p": "0.5",
        "min_p": "0.5",
        "space": "pivot",
        "mapping": "eva",
        "combine": "geometric",
        "filter": "off",
        "weights": "2",
        "weight_decay": "0.5",
        "gate": "0.5",
        "drafter": "ngram",
        "thinking": "on",
        "thinking_instruction": "7 {mark}",
    }
    environ = {f"EVA_LOCAL_{key.upper()}": texts.get(key, "7") for key in DEFAULT_KEYS}
    config = load_config(write(tmp_path, MODELS), environ)
    assert config.ensemble().fusion == FusionSettings(
        mapping="eva",
        combine="geometric",
        sharpness=7.0,
        filter="off",
        filter_n=7,
        candidates=7,
        weights=(2.0,),
        weight_temperature=7.0,
        weight_decay=0.5,
        prompt_evidence=7,
        gate=0.5,
        drafter="ngram",
    )
    assert config.sampling == Sampling(
        *(7, 0.5, 7, 0.5, 0.5, 7, 7, 7, 7, 7),
        thinking="on",
        thinking_temperature=7.0,
        thinking_budget=7,
        thinking_mark="7",
        thinking_instruction="7 {mark}",
    )
    assert config.models["b"].load == LoadSettings(
        7, 7, 7, (3.0, 1.0), 7, 7, "on", "q8_0", False, True, 7
    )
    assert {setting.origin for setting in config.settings.values()} == {
        f"environment {name}" for name in environ
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("N_CTX", "many", "environment EVA_LOCAL_N_CTX: must be a whole number, not 'many'"),
        ("N_CTX", "0", "environment EVA_LOCAL_N_CTX: must be from 1 to 16777216, not 0"),
        ("MIN_P", "nan", "environment EVA_LOCAL_MIN_P: must be a number, not nan"),
        ("SWA_FULL", "maybe", "environment EVA_LOCAL_SWA_FULL: must be true or false, not 'maybe'"),
        ("N_CTXX", "1", "environment EVA_LOCAL_N_CTXX: unknown key; did you mean EVA_LOCAL_N_CTX"),
        ("ENSEMBLE", "z", "environment EVA_LOCAL_ENSEMBLE: there is no ensemble or model 'z'"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(write(tmp_path, MODELS), {f"EVA_LOCAL_{name}": text})


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("n_ctx", "many", "must be a whole number, not 'many'"),
        ("n_ctx", "1.5", "must be a whole number, not '1.5'"),
        ("n_ctx", "0", "must be from 1 to 16777216, not 0"),
        ("n_gpu_layers", "-2", "must be at least -1, not -2"),
        ("tensor_split", "3,x", "must be a list of numbers, not '3,x'"),
        ("swa_full", "2", "must be true or false, not '2'"),
        ("flash_attention", "yes", 'must be "auto" or "off" or "on", not \'yes\''),
        ("temperature", "100", "must be in [0, 100), not 100.0"),
        ("temperature", "inf", "must be a number, not inf"),
        ("top_k", "-1", "must be 0 (off) or more, not -1"),
        ("repeat_last_n", "-2", "must be 0 (off), -1 (all) or more, not -2"),
        ("repeat_penalty", "0", "must be in (0, 100], not 0.0"),
        ("presence_penalty", "101", "must be in [-100, 100], not 101.0"),
        ("seed", "x", "must be a whole number or \"random\", not 'x'"),
        ("seed", "-2", "must be 0 or more, not -2"),
        ("sharpness", "0", "must be above 0, not 0.0"),
        ("gate", "2", "must be in (0, 1], not 2.0"),
        ("weights", "0,0", "must have a sum that is finite and above 0"),
        ("weights", "2,x", f"must be {RULES} or a list of numbers, not '2,x'"),
        ("ensemble", "z", f"there is no ensemble or model 'z'; known are: {KNOWN}"),
    ],
)
def test_a_wrong_value_is_told_with_where_it_came_from(
    tmp_path: Path, key: str, value: str, problem: str
) -> None:
    path = write(tmp_path, MODELS)
    for origin, environ, overrides in (
        (f"environment EVA_LOCAL_{key.upper()}", {f"EVA_LOCAL_{key.upper()}": value}, {}),
        (f"command line --{key.replace('_', '-')}", {}, {key: value}),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path, environ, overrides)
        assert str(caught.value) == f"{origin}: {problem}".replace(": [1]", "[1]")


def test_variables_that_are_no_settings(tmp_path: Path) -> None:
    environ = {
        "EVA_LOCAL_TEST_X": "1",
        "EVA_LOCAL_CACHE": "x",
        "EVA_LOCAL_N_CTX": "",
        "EVA_LOCAL_CONFIG": str(write(tmp_path, MODELS)),
        "OTHER": "1",
    }
    assert load_config(None, environ).models["a"].load.n_ctx == LoadSettings().n_ctx


def test_seed_can_be_random_again(tmp_path: Path) -> None:
    assert load(tmp_path, "[defaults]\nseed = 5").sampling.seed == 5
    assert load(tmp_path, "[defaults]\nseed = 5", seed="random").sampling.seed is None


def test_weights_from_outside_are_measured_against_the_ensemble_that_is_run(tmp_path: Path) -> None:
    config = load(tmp_path, '[ensembles.e]\nmembers = ["a", "b"]', weights="2,1")
    assert config.ensemble("e").fusion.weights == (2.0, 1.0)
    assert len(config.members("a")) == 1
    with pytest.raises(ConfigError, match="command line --weights: weights must be one"):
        config.ensemble("a")
    assert load(tmp_path, weights="equal").ensemble("a").fusion.weights == "equal"


def test_a_drafter_from_outside_is_meant_for_the_ensemble_that_is_run(tmp_path: Path) -> None:
    tables = '[ensembles.e]\nmembers = ["a", "b"]\ndrafter = "off"\n[ensembles.f]\nmembers = ["b"]'
    config = load(tmp_path, tables, drafter="a")
    assert [config.ensemble(name).fusion.drafter for name in ("e", "a")] == ["a", "a"]
    assert config.ensembles["e"].fusion.drafter == "off"
    for name in ("f", "b"):
        with pytest.raises(
            ConfigError, match=rf"command line --drafter: drafter \S+ is no member of {name}; "
        ):
            config.ensemble(name)
    shown = {key: (each.value, each.origin) for key, each in config.settings.items()}
    assert shown["drafter"] == ("a", "command line --drafter")
    config = load(tmp_path, f'[defaults]\ndrafter = "ngram"\n{tables}')
    assert [config.ensemble(name).fusion.drafter for name in ("e", "f")] == ["off", "ngram"]


def test_unknown_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="command line: n_ctxx: unknown key"):
        load(tmp_path, n_ctxx=1)


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first = shipped("models.toml")
    assert load_config(None, {}).paths == (first,)
    user, here = user_file(), Path("models.toml")
    user.parent.mkdir(parents=True)
    for path in (user, here, tmp_path / "x.toml", Path("y.toml")):
        path.touch()
    assert load_config(None, {}).paths == (first, user, here)
    named = {"EVA_LOCAL_CONFIG": "~/x.toml"}
    assert load_config(None, named).paths == (first, user, here, tmp_path / "x.toml")
    assert load_config(Path("y.toml"), named).paths == (first, user, here, Path("y.toml"))
    # What is named counts where it was named.
    assert load_config(user, {}).paths == (first, here, user)


def test_of_one_name_the_last_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    user = user_file()
    user.parent.mkdir(parents=True)
    user.write_text(
        "[defaults]\nn_ctx = 1000\ntop_k = 7\n[models.gemma3-270m]\npath = 'mine.gguf'\n"
        "[models.extra]\npath = 'extra.gguf'\n"
    )
    config = load_config(None, {})
    assert config.models["gemma3-270m"].source == PathSource(user.parent / "mine.gguf")
    assert config.models["smollm2-135m"].load.n_ctx == 1000
    assert {each.name: each for each in config.members("trio")}["gemma3-270m"].source == PathSource(
        user.parent / "mine.gguf"
    )
    # An ensemble is preferred, but a file of models alone is one too.
    assert config.default_ensemble == "extra"
    Path("models.toml").write_text(
        "[defaults]\nn_ctx = 500\n[models.demo]\npath = 'demo.gguf'\n"
        "[ensembles.both]\nmembers = ['demo', 'extra']\n"
    )
    config = load_config(None, {})
    assert (config.default_ensemble, config.sampling.top_k) == ("both", 7)
    assert config.models["extra"].load.n_ctx == 500
    # It took the place of the ensemble of this name.
    assert [member.name for member in config.members("demo")] == ["demo"]
    setting = config.settings["n_ctx"]
    assert setting.origin == "models.toml: defaults.n_ctx"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models.toml of a user, who works in an empty folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    user_file().parent.mkdir(parents=True)
    return user_file()


def test_a_whole_copy_of_an_older_shipped_file_still_counts(user: Path) -> None:
    older = shipped("models.toml").read_text(encoding="utf-8")
    # It has a default ensemble, another licence of a model, and no ensemble that came later.
    older = older.replace("[defaults]\n", '[defaults]\nensemble = "demo"\n', 1)
    older = older.replace('licence = "Apache-2.0"', 'licence = "older"', 1)
    user.write_text(older[: older.index("[ensembles.duo-30b]")], encoding="utf-8")
    config = load_config(None, {})
    assert config.default_ensemble == "demo"
    assert config.models["smollm2-135m"].licence == "older"
    names = [*config.ensembles]
    assert (names[0], names[-1], next(iter(config.models))) == ("demo", "duo-30b", "smollm2-135m")
    Path("models.toml").write_text('[ensembles.mine]\nmembers = ["smollm2-135m"]\n')
    assert load_config(None, {}).default_ensemble == "demo"


def test_an_ensemble_may_have_the_name_of_a_model_of_an_earlier_file(user: Path) -> None:
    """Else a model that is shipped one day could make a user's file wrong."""
    user.write_text('[models.z]\npath = "z.gguf"\n[ensembles.qwen3-4b]\nmembers = ["z"]\n')
    config = load_config(None, {})
    assert config.default_ensemble == "qwen3-4b"
    assert [each.name for each in config.members("qwen3-4b")] == ["z"]
    assert [each.name for each in config.members("qwen3-4b,z")] == ["qwen3-4b", "z"]
    assert isinstance(config.models["qwen3-4b"].source, HubSource)
    # A member may be a model of an earlier file, in a later one under the same name.
    user.write_text('[ensembles.qwen3-4b]\nmembers = ["qwen3-4b", "qwen2.5-7b"]\n')
    assert len(load_config(None, {}).members("qwen3-4b")) == 2


@pytest.mark.parametrize("text", ["\ufeffschema = 1\n", "schema = 1\r\n", "", "# nothing\n"])
def test_a_layer_may_begin_with_a_mark_or_say_nothing(user: Path, text: str) -> None:
    table = text.rstrip("\n").join(["", '\n[models.m]\r\npath = "m.gguf"\r\n']) if text else ""
    user.write_text(table, encoding="utf-8", newline="")
    assert load_config(None, {}).paths == (shipped("models.toml"), user)
    assert ("m" in load_config(None, {}).models) == bool(text)


def test_links_to_layers(user: Path) -> None:
    user.symlink_to(user.parent / "nowhere.toml")
    assert load_config(None, {}).paths == (shipped("models.toml"),)
    user.unlink()
    user.symlink_to(shipped("models.toml"))
    # It is one file, which counts where it counts most.
    assert load_config(None, {}).paths == (user,)
    user.unlink()
    user.symlink_to(user.name)
    assert load_config(None, {}).paths == (shipped("models.toml"),)
    with pytest.raises(ConfigError, match="cannot be read: Too many levels of symbolic links"):
        load_config(user, {})


def test_a_layer_that_is_wrong_is_named(user: Path) -> None:
    for text, told in {
        "broken = ": "not valid TOML: Invalid value",
        '[models]\nfoo = "bar"': "models.foo: must be a table",
        "[models.a]\nsize = 1": "models.a: has no source",
        '[defaults]\nensemble = "none"': "defaults.ensemble: there is no ensemble or model 'none'",
    }.items():
        user.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(None, {})
        assert str(caught.value).startswith(f"{user}: {told}")


@pytest.mark.parametrize("section", ["model", "models"])
def test_another_program_s_models_toml_is_left_alone(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.toml").write_text(f'[[{section}]]\nname = "x"\n')
    assert load_config(None, {}).paths == (shipped("models.toml"),)
    assert "models.toml is another program's, and is not read" in caplog.text
    with pytest.raises(ConfigError, match=r"model: unknown key|models: must be tables"):
        load_config(Path("models.toml"), {})


def gguf(path: Path) -> str:
    path.write_bytes(b"GGUF")
    return str(path)


def test_files_are_members_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (gguf(tmp_path / name) for name in ("Some Model, v2.Q4_K_M.gguf", "b.gguf"))
    config = load_config(None, {}, {"n_ctx": 99, "top_k": 3})
    spec = config.ensemble("b.gguf")
    assert (spec.name, spec.members[0].source) == ("b", PathSource(tmp_path / "b.gguf"))
    assert (spec.members[0].load.n_ctx, spec.sampling.top_k) == (99, 3)
    spec = config.ensemble(f"smollm2-135m,{one.replace(',', chr(92) + ',')},b.gguf,b.gguf")
    assert spec.name == "smollm2-135m+Some-Model-v2.Q4_K_M+b+b-2"
    assert [each.load.n_ctx for each in spec.members] == [99] * 4
    assert spec.pivot == "smollm2-135m"
    spec = config.ensemble([one, other], pivot="b")
    assert (spec.name, spec.pivot) == ("Some-Model-v2.Q4_K_M+b", "b")
    assert load_config(None, {}, {"ensemble": "b.gguf,smollm2-135m"}).ensemble().pivot == "b"
    for wrong, told in {
        "smollm2-135n": "there is no ensemble or model 'smollm2-135n'; did you mean smollm2-135m?",
        "c.gguf": "there is no ensemble or model 'c.gguf'; c.gguf is no file",
        "demo,b.gguf": "there is no ensemble or model 'demo'; an ensemble is no member of another",
    }.items():
        with pytest.raises(ConfigError) as caught:
            config.ensemble(wrong)
        assert str(caught.value) == told
    with pytest.raises(InputError, match="pivot 'x' is no member of b; known are: b"):
        config.ensemble([other], pivot="x")
    assert config.ensemble("demo", pivot="smollm2-135m").pivot == "smollm2-135m"
    # A file's whole name is no list; what is too long for a file is one.
    assert config.ensemble(Path(one).name).members[0].source == PathSource(Path(one))
    assert len(config.ensemble(",".join(["b.gguf"] * 99)).members) == 99
    for name in ("auto", "off", "ngram"):
        assert config.ensemble(gguf(tmp_path / f"{name}.gguf")).name == f"{name}-2"
    with pytest.raises(ConfigError, match=r"no ensemble or model 'xxx.*; known are: "):
        config.ensemble("x" * 300)


def test_what_an_ensemble_is_called_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a, b.gguf", "c.gguf"):
        gguf(tmp_path / name)
    c, escaped = f"{tmp_path}/c.gguf", f"{tmp_path}/a\\, b.gguf"
    for asked, lasting in {
        "trio": "trio",
        "smollm2-135m": "smollm2-135m",
        "c.gguf": c,
        "a, b.gguf": escaped,
        "./c.gguf,smollm2-135m,a\\, b.gguf": f"{c},smollm2-135m,{escaped}",
    }.items():
        spec = load_config(None, {}, {"ensemble": asked}).ensemble()
        assert (spec.called or spec.name) == lasting
    with pytest.raises(ConfigError, match=r"^command line --ensemble: there is no"):
        load_config(None, {}, {"ensemble": "none.gguf"})


def test_a_file_in_no_home_folder_is_one_line(tmp_path: Path) -> None:
    problem = "~nosuchuser/x: there is no such home folder"
    with pytest.raises(ConfigError, match=f"configuration: {problem}"):
        load_config(Path("~nosuchuser/x"), {})
    with pytest.raises(ConfigError, match=f"environment EVA_LOCAL_CONFIG: {problem}"):
        load_config(None, {"EVA_LOCAL_CONFIG": "~nosuchuser/x"})


def test_shipped_file_is_valid_and_complete() -> None:
    config = load_config(shipped("models.toml"), {})
    assert config.default_ensemble == "demo"
    assert {spec.load.n_ctx for spec in config.models.values()} == {4096}
    assert [member.name for member in config.members("demo")] == [
        "qwen2.5-coder-0.5b",
        "smollm2-135m",
    ]
    for spec in config.models.values():
        assert spec.licence, spec.name
        assert spec.description, spec.name
        assert isinstance(spec.source, HubSource) or spec.sha256, spec.name
    assert all(ensemble.description for ensemble in config.ensembles.values())


def test_something_that_is_not_shipped() -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: not in this installation"):
        shipped("nothing.toml")


def test_a_wrong_value_in_python_is_an_input_error() -> None:
    with pytest.raises(InputError, match="n_ctx must be from 1 to 16777216"):
        LoadSettings(n_ctx=0)
    with pytest.raises(InputError, match=r"weights\[0\] must be a number, not nan"):
        FusionSettings(weights=(float("nan"),))


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(DEFAULT_KEYS), toml_values)
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: object) -> None:
    try:
        config = load_config(shipped("models.toml"), {}, {key: value})
    except ConfigError as error:
        message = str(error)
    else:
        message = f"--{key.replace('_', '-')}"
        assert {*config.settings} == set(DEFAULT_KEYS)
    assert "\n" not in message
    assert f"--{key.replace('_', '-')}" in message


@given(st.text(string.ascii_lowercase + "._", min_size=1, max_size=12))
def test_any_unknown_variable_is_refused(name: str) -> None:
    variable = f"EVA_LOCAL_{name.upper()}"
    known = {f"EVA_LOCAL_{key.upper()}" for key in DEFAULT_KEYS}
    if variable in known | {"EVA_LOCAL_CONFIG", "EVA_LOCAL_CACHE"}:
        return
    if variable.startswith("EVA_LOCAL_TEST_"):
        return
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(shipped("models.toml"), {variable: "1"})


ENSEMBLE = '[ensembles.e]\nmembers = ["a"]\n'


def test_an_ensemble_can_say_how_it_draws(tmp_path: Path) -> None:
    (tmp_path / "list.gbnf").write_text('root ::= "ä"', encoding="utf-8")
    own = """
    temperature = 0.5
    top_k = 3
    stop = ["\\n\\n", "END"]
    grammar = "list.gbnf"
    logit_bias = { " the" = -1, "a" = 2.5, "b" = false }
    """
    config = load(tmp_path, f"[defaults]\ntop_k = 9\ntop_p = 0.5\n{ENSEMBLE}{own}", top_k=7)
    expected = Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.5,
        stop=("\n\n", "END"),
        grammar='root ::= "ä"',
        logit_bias={" the": -1, "a": 2.5, "b": False},
    )
    assert config.ensemble("e").sampling == expected
    assert config.ensemble("a").sampling == Sampling(top_k=7, top_p=0.5)
    assert load(tmp_path, ENSEMBLE + own, ensemble="e").sampling.stop == ("\n\n", "END")


def test_a_byte_order_mark_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.gbnf").write_text('root ::= "a"', encoding="utf-8-sig")
    (tmp_path / "form.json").write_text("{}", encoding="utf-8-sig")
    path = tmp_path / "models.toml"
    text = f'{MODELS}\n{ENSEMBLE}grammar = "list.gbnf"\n[ensembles.f]\nmembers = ["a"]\n'
    path.write_text(f'{text}json_schema = "form.json"\n', encoding="utf-8-sig")
    config = load_config(path, {})
    assert config.ensemble("e").sampling.grammar == 'root ::= "a"'
    assert config.ensemble("f").sampling.json_schema == "{}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("temperature = -1", "ensembles.e.temperature: must be in [0, 100), not -1"),
        ("stop = 1", "ensembles.e.stop: must be a text that is not empty or a list of texts"),
        ('stop = [""]', "ensembles.e.stop[0]: must be a text that is not empty"),
        ("logit_bias = { a = true }", "ensembles.e: logit_bias of 'a' must be a number or"),
        ("logit_bias = [1]", "ensembles.e.logit_bias: must be a mapping of texts to"),
        ("logit_bias = { a = nan }", "ensembles.e: logit_bias of 'a' must be a number or false"),
        (
            f"logit_bias = {{ a = {10**400} }}",
            "ensembles.e: logit_bias of 'a' must be a number or false, and finite",
        ),
        ('grammar = ""', "ensembles.e.grammar: must be a text that is not empty"),
        ('grammar = "a\\u0000b"', "ensembles.e.grammar: must be a path, not 'a"),
        ('grammar = "~nosuchuser/x"', "ensembles.e.grammar: ~nosuchuser/x: there is no such home"),
        ('grammar = "none.gbnf"', "none.gbnf: cannot be read: No such file or directory"),
        ('grammar = "bad.gbnf"', "bad.gbnf: cannot be read: not UTF-8 text"),
        ('grammar = "g"\njson_schema = "g"', "ensembles.e: grammar and json_schema exclude"),
        ('json_shema = "g"', "ensembles.e.json_shema: unknown key; did you mean json_schema?"),
    ],
)
def test_wrong_ways_to_draw(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "bad.gbnf").write_bytes(b"\xff")
    (tmp_path / "g").write_text("{}")
    assert expected in problem(tmp_path, f"{MODELS}\n{ENSEMBLE}{line}")


def test_what_belongs_to_an_ensemble_is_no_default(tmp_path: Path) -> None:
    assert "defaults.grammar: unknown key" in problem(tmp_path, f'{MODELS}[defaults]\ngrammar="g"')


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: FusionSettings(weights="abc"), "weights"),
        (lambda: FusionSettings(weights=5), "weights"),
        (lambda: FusionSettings(weights=["1", "2"]), "weights"),
        (lambda: LoadSettings(tensor_split="12"), "tensor_split"),
        (lambda: EnsembleSpec("e", "ab", "a"), "members"),
        (lambda: EnsembleSpec("e", ["a"], "a"), "members"),
    ],
)
def test_a_text_is_no_sequence(make, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}(\[0\])? must be .*, not "):
        make()


def test_any_sequence_of_numbers_counts() -> None:
    assert FusionSettings(weights=[2, 1]).weights == (2, 1)
    assert LoadSettings(tensor_split=[3, 1]).tensor_split == (3, 1)
