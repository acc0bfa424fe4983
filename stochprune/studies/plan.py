"""The plan of a study: a grid in a YAML file."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stochprune import scores
from stochprune.arguments import checked, fits, in_words, is_finite, shown
from stochprune.pac_bayes import RunConfig
from stochprune.runs.config import FRACTION, at_least
from stochprune.runs.folder import file_name
from stochprune.studies import certificates, document
from stochprune.studies.certificates import OWN, CertificateArm, CertificateBlock, CertificateCell
from stochprune.studies.finetune import SELECTIONS, StudyConfig
from stochprune.studies.fraction import FractionConfig
from stochprune.studies.initialisation import Cell, InitialisationConfig
from stochprune.studies.language_models import MODEL, LanguageArm, LanguageConfig
from stochprune.studies.methods import Arm, ArmBlock, ImageMethodsConfig, MethodCell, MethodsConfig

MAX_CELLS = 100_000
SHIPPED = (
    *("immune", "prospr", "finetune", "methods", "methods-test", "methods-structured"),
    *("immune-cifar10", "prospr-cifar10", "finetune-cifar10", "methods-cifar10", "methods-structured-cifar10"),
    *("pruning-fraction", "language-models", "language-models-10m", "certificates", "certificates-data-free"),
)
SETTINGS = {
    "initialisation": InitialisationConfig,
    "finetune": StudyConfig,
    "methods": ImageMethodsConfig,
    "fraction": FractionConfig,
    "language_models": LanguageConfig,
    "certificates": RunConfig,
}
BLOCKS: dict[type, tuple[type, type]] = {
    LanguageConfig: (LanguageArm, ArmBlock),
    RunConfig: (CertificateArm, CertificateBlock),
}
"""The arms of a grid and their block, by the kind of settings; all others have ``Arm`` and ``ArmBlock``."""
DECIDED: dict[str, tuple[str, dict[str, str]]] = {
    "finetune": ("finetune", {"sparsity": "the sparsities of the grid", "seed": "seeds"}),
    "certificates": ("self_bound", certificates.DECIDED),
}
"""By job: a part of its settings, and what decides instead of fields of this part."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A product of scores, sparsities and ablations.

    Attributes:
        scores: names, each with its options.

    Raises:
        ValueError: an unknown score or option, or a sparsity outside [0, 1).
    """

    scores: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    sparsities: tuple[float, ...]
    ablations: tuple[str, ...] = ("none",)

    def __post_init__(self) -> None:
        FRACTION.require(self, "sparsities")
        for score, options in self.scores:
            scores.check_options(score, dict(options))

    def __len__(self) -> int:
        return len(self.scores) * len(self.sparsities) * len(self.ablations)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study: its blocks for each data set, model and seed.

    Attributes:
        name: the name of its folders and files.
        title: one line for tables and pictures.
        job: ``initialisation``: prune at initialisation and train (:mod:`stochprune.studies.initialisation`), and train
            dense networks; ``finetune``: fine-tune the masks of trained networks (:mod:`stochprune.studies.finetune`);
            ``methods``: compare pruning methods on trained networks (:mod:`stochprune.studies.methods`); ``fraction``:
            bounds and errors against the pruned fraction (:mod:`stochprune.studies.fraction`); ``language_models``:
            compare pruning methods on a language model (:mod:`stochprune.studies.language_models`); ``certificates``:
            certify risks (:mod:`stochprune.studies.certificates`).
        seeds: the number of seeds.
        settings: fields of the job's configuration, see :data:`SETTINGS`.
    """

    name: str
    title: str
    job: Literal["initialisation", "finetune", "methods", "fraction", "language_models", "certificates"]
    data: tuple[str, ...]
    models: tuple[str, ...]
    seeds: int
    grid: tuple[Block | ArmBlock | CertificateBlock, ...]
    settings: InitialisationConfig | StudyConfig | MethodsConfig | RunConfig

    def __post_init__(self) -> None:
        at_least(1).require(self, "seeds")
        if not re.fullmatch(r"\w[\w. +-]{0,99}", self.name):  # the name of a folder inside that of all runs
            raise ValueError(f"name must be letters, digits and . _ + - only, to name a folder, got {self.name!r}")
        for name in ("data", "models", "grid"):
            if not getattr(self, name):
                raise ValueError(f"{self.name}: {name} must name at least one")
        for name in self.data:  # of a folder inside that of all data
            file_name(name, f"{self.name}: each name of data")
        if self.job == "language_models" and self.models != (MODEL,):
            raise ValueError(f"{self.name}: models of a study of language models must be [{MODEL}], got {self.models}")
        named: dict[tuple[str, float], Arm] = {}
        for block in self.grid:
            if isinstance(block, Block) == isinstance(self.settings, MethodsConfig | RunConfig):
                raise ValueError(
                    f"{self.name}: jobs methods, fraction, language_models and certificates, and no others, have arms "
                    f"in their grid, got {self.job}"
                )
            if isinstance(block, CertificateBlock):
                continue
            if isinstance(block, ArmBlock):
                assert isinstance(self.settings, MethodsConfig)
                for arm, sparsity in itertools.product(block.arms, block.sparsities):
                    arm.config(self.settings.epochs, sparsity, 0)  # raises for an impossible arm
                    if named.setdefault((arm.name, sparsity), arm) != arm:
                        raise ValueError(
                            f"{self.name}: two arms at sparsity {sparsity:g} have the name {arm.name!r}, and "
                            "tables would mix them: rename one"
                        )
                continue
            if self.job == "finetune" and (any(options for _, options in block.scores) or block.ablations != ("none",)):
                raise ValueError(f"{self.name}: a fine-tuning study takes scores without options, and no ablations")

        cells = self.seeds * len(self.data) * len(self.models)
        cells *= sum(map(len, self.grid))
        if cells > MAX_CELLS:
            raise ValueError(f"{self.name}: seeds, data, models and grid make {cells} cells, more than {MAX_CELLS}")

    def cells(self, data: str) -> Iterator[Cell]:
        """The cells of job ``initialisation`` on one data set, each once: the dense networks, then seed by seed."""
        assert isinstance(self.settings, InitialisationConfig)
        seen = set()
        for model, seed in itertools.product(self.models, range(self.seeds)):
            yield Cell(data, model, "magnitude", 0.0, seed, self.settings)
            for block in self.grid:
                assert isinstance(block, Block)
                for (score, options), sparsity, ablation in itertools.product(
                    block.scores, block.sparsities, block.ablations
                ):
                    cell = Cell(data, model, score, sparsity, seed, self.settings, ablation, options)
                    if cell not in seen:
                        seen.add(cell)
                        yield cell

    def method_cells(self, data: str) -> Iterator[MethodCell]:
        """The cells of the jobs whose grid has arms, on one data set, each once, seed by seed."""
        assert isinstance(self.settings, MethodsConfig)
        found: dict[MethodCell, None] = {}
        for model, seed, block in itertools.product(self.models, range(self.seeds), self.grid):
            assert isinstance(block, ArmBlock)
            for arm, sparsity in itertools.product(block.arms, block.sparsities):
                found[MethodCell(data, model, arm, sparsity, seed, self.settings)] = None
        yield from found

    def certificate_cells(self, data: str) -> Iterator[CertificateCell]:
        """The cells of job ``certificates`` on one data set, seed by seed."""
        assert isinstance(self.settings, RunConfig)
        for model, seed, block in itertools.product(self.models, range(self.seeds), self.grid):
            assert isinstance(block, CertificateBlock)
            settings = dataclasses.replace(self.settings, data=data, model=model, seed=seed)
            for arm in block.arms:
                yield CertificateCell(arm.name, arm.config(settings))


@checked
def load(name: str | Path, small: bool = False) -> Plan:
    """Read the study of a YAML file, or a shipped study by its name.

    Args:
        small: replace values by those of the file's section ``small``.

    Raises:
        ValueError: neither a file nor a shipped name; content that :mod:`stochprune.studies.document` does not read; a
            key that is unknown or missing, or an invalid value. The message names the file and the key.
    """
    path = Path(name)
    if str(name) in SHIPPED:
        content = document.loads(str(name), (resources.files("stochprune.studies") / f"{name}.yaml").read_bytes())
    elif path.is_file():
        content = document.load(path)
    else:
        raise ValueError(f"{str(name)!r} is neither a file nor one of the studies {', '.join(SHIPPED)}")
    changes = content.pop("small", None)
    if small:
        if not isinstance(changes, dict):
            raise ValueError(f"{name} has no section 'small'")
        content = _merged(content, changes)
    job = content.get("job")
    settings = content.pop("settings", None)
    settings = {} if settings is None else settings
    known = job if isinstance(job, str) else ""  # what else is there is refused below
    chosen = {"finetune": ("data", "model", *SELECTIONS), "certificates": OWN}.get(known, ())
    if isinstance(settings, dict) and (twice := sorted(set(chosen) & set(settings))):
        raise ValueError(
            f"{path.stem}: in a study of job {job} {twice[0]} must be a key of the study, not of its settings"
        )
    part, decided = DECIDED.get(known, ("", {}))
    inner = settings.get(part) if isinstance(settings, dict) else None
    for field in sorted(set(decided) & set(inner if isinstance(inner, dict) else ())):
        raise ValueError(
            f"{path.stem}: {field} of {part} has no effect in a study, where {decided[field]} decide: leave it out"
        )
    kind: type = SETTINGS.get(known, InitialisationConfig)
    grid = content.pop("grid", None) or []
    if not isinstance(grid, list):
        raise ValueError(f"{path.stem}: grid must be a list of blocks, got {shown(grid)}")
    arms = BLOCKS.get(kind, (Arm, ArmBlock))
    blocks = tuple(_block(entry, f"{path.stem}: grid", *arms) for entry in grid)
    where = path.stem + (" (small)" if small else "")
    return _made(
        Plan,
        {"name": path.stem + "-small" * small, "grid": blocks, "settings": _made(kind, settings, where), **content},
        where,
    )


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(content[k], v)
        for k, v in changes.items()
        if isinstance(v, dict) and isinstance(content.get(k), dict)
    }
    return {**content, **changes, **both}


def _block(entry: Any, where: str, arm: type, block: type) -> Any:
    """Return a block of arms of these two types, or a :class:`Block`."""
    if isinstance(entry, dict) and isinstance(entry.get("arms"), dict):
        arms = tuple(_arm(name, values, where, arm) for name, values in entry["arms"].items())
        return _made(block, {**entry, "arms": arms}, where)
    if not isinstance(entry, dict) or not isinstance(entry.get("scores"), list):
        raise ValueError(
            f"{where}: a block must be a mapping with lists scores, sparsities and ablations, got {shown(entry)}"
        )
    return _made(Block, {**entry, "scores": tuple(_score(score, where) for score in entry["scores"])}, where)


def _arm(name: str, entry: Any, where: str, kind: type) -> Any:
    """Return an arm from its name and a mapping such as ``{method: rigl, every: 50}``."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: the arm {name!r} must be a mapping of its options, got {shown(entry)}")
    own = {field.name for field in dataclasses.fields(kind)} - {"name", "options"}
    options = _options(f"the arm {name!r}", {key: value for key, value in entry.items() if key not in own}, where)
    given = {key: value for key, value in entry.items() if key in own}
    return _made(kind, {**given, "name": name, "options": options}, where)


def _score(entry: Any, where: str) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Return a name and its options, from ``snip`` or ``{prospr: {steps: 3}}``."""
    if isinstance(entry, str):
        return entry, ()
    if not (isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict)):
        raise ValueError(f"{where}: a score must be a name, or a mapping of one name to options, got {shown(entry)}")
    name, options = next(iter(entry.items()))
    if not isinstance(name, str):
        raise ValueError(f"{where}: the name of a score must be text, got {shown(name)}")
    return name, _options(name, options, where)


def _options(name: str, options: Mapping[str, Any], where: str) -> tuple[tuple[str, Any], ...]:
    """Return the options of a score or an arm as sorted pairs."""
    for option, value in options.items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(
                f"{where}: option {option} of {name} must be a number, text, true or false, got {shown(value)}"
            )
    return tuple(sorted((option, _number(value)) for option, value in options.items()))


def _number(value: Any) -> Any:
    """Return the number of a text like 1e-3, which YAML reads as text; return anything else unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _made(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass from a mapping of a YAML file; numbers and lists are converted to the types of its fields."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known are: {', '.join(fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    kinds = get_type_hints(kind)
    fitted = {name: _fitted(kinds[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return kind(**fitted)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _fitted(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _made(kind, value, where)
    if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {shown(value)}")
        return tuple(_fitted(get_args(kind)[0], item, where) for item in value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where} must be one of {', '.join(get_args(kind))}, got {shown(value)}")
        return value
    if kind is float:
        number = _number(value)  # YAML reads 1e-3 as text
        if not fits(float, number) or not is_finite(number):
            raise ValueError(f"{where} must be a finite number, got {shown(value)}")
        return float(number)
    if kind in (int, str) and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{where} must be {in_words(kind)}, got {shown(value)}")
    return value
