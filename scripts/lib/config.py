"""The recipe: read, checked for shape, then for sense between its keys, before any job starts."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from scripts.lib.addresses import check_address
from scripts.lib.errors import EqaError
from scripts.lib.tokens import PROCESSOR_MIN_PIXELS, check_token_budget

PRESETS_DIR = Path("config/presets")
CONFIG = Path("config/config.yaml")
# a number in YAML 1.2, and in what DVC writes for `-S`; in the YAML 1.1 of PyYAML it wants a point and a sign
_SCIENTIFIC = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")


def load_yaml(path: Path) -> object:
    """Parse a YAML file; 2e-05 is a number, "2e-05" is text.

    Raises:
        EqaError: missing or not YAML; names the file and the line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise EqaError(f"{path}: no such file; `make use PRESET=demo` writes config/config.yaml") from None
    except UnicodeDecodeError as error:
        raise EqaError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise EqaError(f"{path}:{line} is not YAML ({getattr(error, 'problem', error)}); mend it there") from None
    except RecursionError:
        raise EqaError(f"{path}: is nested too deeply to be read; mend it there") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # a date of month 13, `!!int abc`, `!!bool a`
        raise EqaError(f"{path}: has a value that is not what it says ({str(error)[:80]}); mend it there") from None


def select(config: Mapping, keys: Iterable[str]) -> dict:
    """The named part of the config, nested as in the file: "train" is a section, "train.seed" one key of it."""
    part: dict = {}
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            part.setdefault(section, {})[name] = config[section][name]
        else:
            part[section] = config[section]
    return part


def canonical_json(value: object) -> str:
    """One string for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def check_shape(config: object, schema: Mapping) -> None:
    """Compare with config/schema.yaml.

    Raises:
        EqaError: the first fault in file order: unknown key, missing key, wrong type, value out of bounds.
    """
    from jsonschema import Draft202012Validator

    errors = sorted(
        Draft202012Validator(schema).iter_errors(config), key=lambda error: [str(p) for p in error.absolute_path]
    )
    if errors:
        raise EqaError(f"config: {_shape_message(errors[0], config)}")


def _shape_message(error: object, config: object) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = sorted(str(key) for key in set(error.instance) - set(known))
        key = f"{where}.{unknown[0]}" if where else unknown[0]
        return f"unknown key {key}; known here: {', '.join(known)}{_did_you_mean(unknown[0], known)}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        key = f"{where}.{missing[0]}" if where else missing[0]
        return f"missing key {key}; copy it from config/presets/demo.yaml"
    value = json.dumps(error.instance, default=str)
    if error.validator == "type":
        hint = _number_hint(error.instance) if error.validator_value in ("number", "integer") else ""
        return f"{where or 'the file'}={value[:80]} has the wrong type; {error.validator_value} is wanted{hint}"
    if error.validator == "enum":
        return f"{where}={value[:80]} is not possible; one of {', '.join(json.dumps(v) for v in error.validator_value)} is wanted"
    limits = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    if error.validator in limits:
        return f"{where}={value} is out of bounds; a value {limits[error.validator]} {error.validator_value} is wanted"
    return f"{where}={value[:80]}: {error.message[:200]}"


def _number_hint(value: object) -> str:
    """YAML 1.1 reads 1e-4 as text: a number in scientific notation wants a point and a sign, 1.0e-4."""
    try:
        number = repr(float(value)) if isinstance(value, str) else ""
    except ValueError:
        return ""
    if "e" in number and "." not in number:
        number = number.replace("e", ".0e")
    return f"; write it as {number}" if number else ""


def _did_you_mean(word: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def mend_numbers(config: object, written: object) -> None:
    """Put numbers such as 2e-05 where a YAML 1.1 reader found text; what stands in quotes stays text.

    Args:
        config: sections of keys, as Snakemake read them; changed in place.
        written: the same file by `load_yaml`.
    """
    if not (isinstance(config, dict) and isinstance(written, dict)):
        return
    for key, value in config.items():
        number = written.get(key)
        if isinstance(value, dict):
            mend_numbers(value, number)
        elif isinstance(number, float) and isinstance(value, str) and _SCIENTIFIC.match(value):
            config[key] = number if float(value) == number else value


def whole_numbers(config: object, schema: Mapping) -> None:
    """Make 1e4 and 64.0 what they say where a whole number is wanted: JSON Schema takes them for one, Python does not.

    Args:
        config: changed in place.
        schema: config/schema.yaml, or the part of it that is about `config`.
    """
    keys = schema.get("properties")
    if not isinstance(config, dict) or not isinstance(keys, Mapping):
        return
    for key, value in config.items():
        about = keys.get(key, {})
        if isinstance(value, dict):
            whole_numbers(value, about)
        elif isinstance(value, float) and about.get("type") == "integer" and value.is_integer():
            config[key] = int(value)


def check_finite(config: object, name: str = "") -> None:
    """Raises EqaError, naming the key, for .nan and .inf, which no bound of the schema catches."""
    if isinstance(config, dict):
        for key, value in config.items():
            check_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(config, float) and not math.isfinite(config):
        raise EqaError(f"config: {name}={config} is no finite number; write one")


def check_sense(config: Mapping) -> None:
    """Contradictions between keys that each are fine alone.

    Raises:
        EqaError: names key, value, limit and way out.
    """
    vision, train, model = config["vision"], config["train"], config["model"]
    check_backend(train["backend"])
    least = PROCESSOR_MIN_PIXELS["demo" if model["source"] == "demo" else "qwen3-vl"]
    if vision["image_max_pixels"] < least:
        raise EqaError(
            f"config: vision.image_max_pixels={vision['image_max_pixels']} is under the processor's minimum of {least} px, "
            f"which would scale pictures up again; raise it to {least} or more"
        )
    if vision["image_min_pixels"] > vision["image_max_pixels"]:
        raise EqaError(
            f"config: vision.image_min_pixels={vision['image_min_pixels']} is over vision.image_max_pixels="
            f"{vision['image_max_pixels']}; lower the first or raise the second"
        )
    check_token_budget(config["frames"]["count"], vision["image_max_pixels"], train["cutoff_len"])
    if config["split"]["val"] + config["split"]["test"] >= 1:
        raise EqaError(
            f"config: split.val={config['split']['val']} + split.test={config['split']['test']} leave nothing to train on; "
            f"their sum must be under 1"
        )
    check_steps(train)
    if not config["data"]["source"] and not config["data"]["demo_episodes"]:
        raise EqaError(
            'config: data.source="" and data.demo_episodes=0 leave no data; name a folder in data.source or set data.demo_episodes to 44'
        )
    if config["split"]["file"] and not Path(config["split"]["file"]).is_file():
        raise EqaError(f'config: split.file={config["split"]["file"]} does not exist; name a file or set it to ""')
    if model["source"] == "local" and not model["path"]:
        raise EqaError('config: model.source=local needs model.path, which is ""; name the folder of the base model')
    _check_storage(config)
    for section in ("judge", "predict"):
        if config[section]["url"]:
            check_address(config[section]["url"], f"config: {section}.url")
    if config["deliver"]["llm_match"] and not config["judge"]["url"]:
        raise EqaError(
            'config: deliver.llm_match=true needs judge.url, which is ""; name the judge\'s endpoint or set it to false'
        )
    if config["predict"]["engine"] == "openai" and not config["predict"]["url"]:
        raise EqaError(
            'config: predict.engine=openai needs predict.url, which is ""; name the server, such as http://127.0.0.1:23333/v1'
        )


def check_steps(train: Mapping) -> None:
    """Whether steps are saved, validated and counted so that a training can end and go on.

    transformers takes the lowest validation loss for the best step, whether that step was saved or not.

    Raises:
        EqaError: train.load_best with validations between checkpoints, or a training of no steps.
    """
    if train["load_best"] and train["save_steps"] != train["eval_steps"]:
        raise EqaError(
            f"config: train.save_steps={train['save_steps']} is not train.eval_steps={train['eval_steps']}; train.load_best can "
            f"only take a step that was both validated and saved: set both to {train['eval_steps']}, or train.load_best to false"
        )
    if train["max_steps"] == 0:
        raise EqaError("config: train.max_steps=0 would train one step; set it to -1 for all epochs, or to 1 or more")


def check_backend(backend: str) -> None:
    """Refuse config `train.backend` unsloth: no release of it trains Qwen3-VL through the LLaMA-Factory that is locked.

    LLaMA-Factory 0.9.5 (model/model_utils/visual.py patch_target_modules) names each layer of a picture model by its whole
    path; Unsloth 2026.10.9 (unsloth_zoo/peft_utils.py get_peft_regex) takes such a list for last names and finds no layer.

    Raises:
        EqaError: it is unsloth.
    """
    if backend == "unsloth":
        raise EqaError(
            "config: train.backend=unsloth cannot train Qwen3-VL: Unsloth 2026.10.9 finds no layer by the names that "
            'LLaMA-Factory 0.9.5 gives it ("No layers to finetune", docs/decisions.md); set train.backend to llamafactory'
        )


def _check_storage(config: Mapping) -> None:
    """What DVC stores and publishes: a real base model only when asked for, real frames never by oversight."""
    model, data, report = config["model"], config["data"], config["report"]
    wanted = "models/base" if model["source"] == "demo" or data["dvc_cache"] else "models/base/manifest.json"
    if model["dvc_out"] != wanted:
        raise EqaError(
            f"config: model.dvc_out={model['dvc_out']} does not fit model.source={model['source']} with "
            f"data.dvc_cache={str(data['dvc_cache']).lower()}; set model.dvc_out to {wanted}"
        )
    if data["source"] and not data["frames_remote"]:
        raise EqaError(
            'config: data.frames_remote="" would push real frames to the default DVC remote; set it to unshared, or to a remote '
            "that only licensees can read"
        )
    if data["source"] and report["frames"] != "none" and not report["dvc_remote"]:
        # embedded or beside the page, the pictures lie in the DVC out results/report
        raise EqaError(
            f'config: report.dvc_remote="" would push the real frames of the report (report.frames={report["frames"]}) to the '
            "default DVC remote; set it to unshared, or to a remote that only licensees can read, or report.frames to none"
        )


def check_config(config: object, root: Path) -> None:
    """Shape, then sense.

    Args:
        config: parsed config/config.yaml, with command-line overrides applied; numbers such as 2e-05 are mended in it.
        root: the project's folder, for config/schema.yaml.
    Raises:
        EqaError: the first fault.
    """
    schema = load_yaml(root / "config/schema.yaml")
    if (root / CONFIG).is_file():
        mend_numbers(config, load_yaml(root / CONFIG))
    whole_numbers(config, schema)
    check_finite(config)
    check_shape(config, schema)
    check_sense(config)


def check_types(part: Mapping, root: Path) -> None:
    """Types of the keys that a script was given by hand, where no Snakefile has checked the recipe.

    Raises:
        EqaError: the first value of another type than config/schema.yaml says, such as a rate given as text.
    """
    from jsonschema import Draft202012Validator

    sections = load_yaml(root / "config/schema.yaml")["properties"]
    schema = {"type": "object", "properties": {name: sections[name] for name in part}}
    for error in Draft202012Validator(schema).iter_errors(dict(part)):
        if error.validator == "type":
            raise EqaError(f"config: {_shape_message(error, part)}")


def resolve_source(source: str, key: str = "data.source") -> Path | None:
    """The folder that `data.source` (or another path key) names; None for "".

    Raises:
        EqaError: an environment variable in it is not set, or the folder does not exist.
    """
    if not source:
        return None
    expanded = os.path.expandvars(os.path.expanduser(source))
    if "$" in expanded:
        name = expanded[expanded.index("$") :].split("/")[0].strip("${}")
        raise EqaError(
            f"config: {key}={source}: the environment variable {name} is not set; export {name}=FOLDER or write the folder into {key}"
        )
    path = Path(expanded)
    if not path.is_dir():
        raise EqaError(f"config: {key}={source}: the folder {path} does not exist; mount it or correct {key}")
    return path


def use_preset(name: str, root: Path) -> Path:
    """Copy config/presets/NAME.yaml over config/config.yaml.

    Raises:
        EqaError: no such preset; lists those that exist.
    """
    presets = sorted(path.stem for path in (root / PRESETS_DIR).glob("*.yaml"))
    if name not in presets:
        raise EqaError(f"PRESET={name or '(empty)'}: no such preset in {PRESETS_DIR}; one of {', '.join(presets)}")
    target = root / "config/config.yaml"
    from scripts.lib.files import write_text

    write_text(target, (root / PRESETS_DIR / f"{name}.yaml").read_text(encoding="utf-8"))
    return target
