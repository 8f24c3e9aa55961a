"""Rules for the source of the package, checked on its syntax trees.

Each rule is a function from a module's name and tree to complaints, so that the tests
can run it on a bad example as well as on the package.
"""

import ast
import pathlib
import re

import pytest
from source_rules import ORDER, imports, pickle_complaints

import pinsage_jax

ROOT = pathlib.Path(pinsage_jax.__file__).parent
TESTS = pathlib.Path(__file__).parent

RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# Host code: it runs in threads beside the device and is tested without it.
WITHOUT_JAX = (
    "cpu.kernel_cache",
    "cpu.prefetch",
    "cli",
    "config",
    "core.costs",
    "core.errors",
    "core.files",
    "core.version",
    "distributed.process_group",
    "api",
    "distributed.channel",
    "distributed.hellos",
    "distributed.identity",
    "core.logging_setup",
    "core.signals",
    "core.splitmix",
    "cpu.allocator",
    "core.progress",
    "core.workdir",
    "graph",
    "sampling",
    "batching.blocks",
    "batching.block_kernels",
    "batching.graph_view",
    "batching.inputs",
    "batching.builder",
    "batching.frontier",
    "batching.prefetch",
    "batching.transposed",
    "batching.transpose_kernels",
    "evaluation.metrics",
    "retrieval.ranks",
    "ranking",
    "core.text_table",
)
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
LONGEST = 400
MOST_MODULES = 12
LONGEST_FUNCTION = 100
MOST_ARGUMENTS = 8
# Stems that British spelling ends in -our, -re, a doubled l, and -ise.
_OUR = "neighb|col|behavi|fav|hon|lab|flav|hum|rum|harb|vap|endeav|rig"
_RE = "cent|met|lit|theat|fib|calib"
_LL = "labe|mode|trave|cance|signa|tunne|leve|marve|fue|chane"
_IS = (
    "normal|optim|initial|real|organ|recogn|serial|summar|minim|maxim|quant|token|parallel|"
    "vector|regular|character|synchron|util|general|standard|priorit|special|random|material|"
    "custom|emphas|visual|final|categor|discret|penal|factor|linear|memor|local|harmon|symmetr|"
    "author|capital|equal|stabil|virtual|ideal|modern|formal|external|internal|neutral|popular"
)
BRITISH = re.compile(
    rf"({_OUR})our|({_RE})res?\b|({_LL})ll(ed(?!by)|ing|er)|"
    rf"({_IS})is(e[drs]?|ers|ing|ations?)(?![a-z])|"
    r"catalogue|analys(e[dr]?|ing)\b|licence|defence|offence|artefact|judgement|whilst|amongst|"
    r"programme\b|fulfil\b|skilful|grey|ageing|learnt|cheque|sceptic|manoeuvre|practise",
    re.IGNORECASE,
)


def package_modules() -> dict[str, ast.Module]:
    """Trees by dotted name without the package's own: 'graph.csr', '' for the package."""
    trees = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = package_modules()


def own_imports(tree: ast.Module, modules: dict[str, ast.Module]) -> set[str]:
    """Modules of the package that are imported, named as in `modules`."""
    found = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] != "pinsage_jax":
            continue
        inner = ".".join(parts[1:])
        # `from pinsage_jax.graph.csr import Graph` names a thing inside a module.
        found.add(inner if inner in modules else ".".join(parts[1:-1]))
    return found - {""}


def direction_complaints(name: str, tree: ast.Module, modules: dict[str, ast.Module]) -> list[str]:
    here = name.split(".")[0]
    if here not in RANK:
        return [f"{here} is not listed in ORDER"]
    return [
        f"{name} imports {other}"
        for other in sorted(own_imports(tree, modules))
        if other.split(".")[0] not in RANK or RANK[other.split(".")[0]] > RANK[here]
    ]


def reached(name: str, modules: dict[str, ast.Module]) -> set[str]:
    """The module and all modules of the package that importing it brings in."""
    seen, waiting = set(), [name]
    while waiting:
        if (current := waiting.pop()) not in seen:
            seen.add(current)
            waiting += own_imports(modules[current], modules)
    return seen


def jax_complaints(name: str, modules: dict[str, ast.Module]) -> list[str]:
    return [
        f"{name} reaches {other}, which imports {library}"
        for other in sorted(reached(name, modules))
        for library in sorted({found.split(".")[0] for found in imports(modules[other])} & JAX)
    ]


def device_complaints(name: str, tree: ast.Module) -> list[str]:
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    named |= {part for found in imports(tree) for part in found.split(".")}
    spelled = named & {"pmap", "shard_map", "NamedSharding"}
    return [f"{name} spells {word}" for word in sorted(spelled) if name != "distributed.devices"]


def flag_complaints(name: str, tree: ast.Module) -> list[str]:
    if name in ("cli", "main"):
        return []
    found = {".".join(module.split(".")[:2]) for module in imports(tree)}
    return [f"{name} imports {module}" for module in sorted(found & {"absl.flags", "absl.app"})]


def kernel_complaints(name: str, tree: ast.Module) -> list[str]:
    complaints = []
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        word = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
        if word == "prange":
            complaints.append(f"{name}:{node.lineno} uses prange")
        if word not in ("njit", "vectorize", "guvectorize"):
            continue
        options = {key.arg: key.value for key in called[id(node)].keywords} if (
            id(node) in called
        ) else {}  # fmt: skip
        given = {key: getattr(value, "value", None) for key, value in options.items()}
        if given.get("nogil") is not True:
            complaints.append(f"{name}:{node.lineno} {word} without nogil=True")
        complaints += [
            f"{name}:{node.lineno} {word} with {key}"
            for key in ("parallel", "fastmath")
            if given.get(key, False) is not False
        ]
    return complaints


def compiler_complaints(name: str, tree: ast.Module) -> list[str]:
    """Numba's own decorators, whose cache does not notice a change of another file."""
    if name == "cpu.kernel_cache":
        return []
    decorators = {f"numba.{word}" for word in ("njit", "jit", "cfunc", "vectorize", "guvectorize")}
    spelled = imports(tree) | {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    return [f"{name} uses {word}" for word in sorted(spelled & decorators)]


def test_the_package_was_found():
    assert {"", "config.settings", "graph", "graph.csr", "sampling.kernels", "main"} <= set(MODULES)
    assert len(MODULES) > 25


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_imports_point_one_way(name):
    assert direction_complaints(name, MODULES[name], MODULES) == []


@pytest.mark.parametrize(
    "name",
    [name for name in sorted(MODULES) if any(f"{name}.".startswith(f"{w}.") for w in WITHOUT_JAX)],
)
def test_host_code_needs_no_jax(name):
    assert jax_complaints(name, MODULES) == []


def test_every_module_that_must_do_without_jax_exists():
    assert [name for name in WITHOUT_JAX if name not in MODULES] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_source_rules(name):
    tree = MODULES[name]
    assert device_complaints(name, tree) == []
    assert flag_complaints(name, tree) == []
    assert pickle_complaints(name, tree) == []
    assert kernel_complaints(name, tree) == []
    assert compiler_complaints(name, tree) == []
    assert ast.get_docstring(tree), f"{name or 'the package'} has no docstring"


def test_nobody_imports_the_command_line():
    allowed = {"cli": {"main"}, "main": {"__main__"}}
    importers = {
        target: {name for name, tree in MODULES.items() if target in own_imports(tree, MODULES)}
        for target in allowed
    }
    assert importers == allowed


def test_no_test_imports_another():
    # What tests share is in tests/helpers, so that every file of tests runs alone.
    tests = {path.stem: path for path in TESTS.rglob("*.py")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in tests.items()}
    importers = {
        name: sorted({module.split(".")[0] for module in imports(tree)} & trees.keys())
        for name, tree in trees.items()
    }
    helpers = {path.stem for path in (TESTS / "helpers").glob("*.py")}
    assert {name: found for name, found in importers.items() if set(found) - helpers} == {}


def test_modules_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
    assert lengths["main.py"] < 80


def test_the_top_holds_the_program_and_the_library_alone():
    names = {path.name for path in ROOT.glob("*.py")}
    assert names == {"__init__.py", "__main__.py", "api.py", "cli.py", "main.py"}


def test_folders_are_small():
    counts = {
        str(folder.relative_to(ROOT)): len([p for p in folder.glob("*.py") if p.stem != "__init__"])
        for folder in ROOT.rglob("*")
        if folder.is_dir()
    }
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


def length_complaints(name: str, tree: ast.Module) -> list[str]:
    """Long functions; a kernel may be long where calls would cost speed."""
    if name.endswith("kernels"):
        return []
    return [
        f"{name}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_functions_are_short(name):
    assert length_complaints(name, MODULES[name]) == []


def test_the_length_rule_bites():
    lines = "\n".join(["    pass"] * LONGEST_FUNCTION)
    tree = ast.parse(f"def f():\n{lines}")
    assert length_complaints("x", tree) == ["x:1 f has 101 lines"]
    assert length_complaints("sampling.kernels", tree) == []
    assert length_complaints("x", ast.parse("def f():\n" + "    pass\n" * 99)) == []


def argument_complaints(name: str, tree: ast.Module) -> list[str]:
    """Many arguments; a kernel takes arrays one by one, and `fit` has the flags of the tables."""
    if name.endswith("kernels") or name == "estimator.model":
        return []
    complaints = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
            count = len([argument for argument in named if argument not in ("self", "cls")])
            if count > MOST_ARGUMENTS:
                complaints.append(f"{name}:{node.lineno} {node.name} has {count} arguments")
    return complaints


@pytest.mark.parametrize("name", sorted(MODULES))
def test_functions_take_few_arguments(name):
    assert argument_complaints(name, MODULES[name]) == []


def test_the_argument_rule_bites():
    tree = ast.parse("def f(self, a, b, c, d, *, e, g, h, i, j): pass")
    assert argument_complaints("x", tree) == ["x:1 f has 9 arguments"]
    assert argument_complaints("sampling.kernels", tree) == []
    assert argument_complaints("x", ast.parse("def f(self, a, b, c, d, e, g, *, h, i): pass")) == []


def british_words(text: str) -> list[str]:
    return sorted({found[0].lower() for found in BRITISH.finditer(text)})


def test_spelling_is_american():
    top = ROOT.parent
    folders = [top / name for name in ("pinsage_jax", "docs", "experiments")]
    kinds = (".py", ".md", ".flags", ".html", ".js", ".css")
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in kinds]
    assert len(paths) > 150
    paths += [top / "README.md", top / "BUILD_NOTES.md", top / "CHANGELOG.md"]
    found = {str(p.relative_to(top)): british_words(p.read_text(encoding="utf-8")) for p in paths}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "word",
    ["neighbours", "catalogue", "normalised", "optimiser", "colour", "behaviour", "initialise",
     "labelled", "centre", "analysed", "metres", "modelling", "quantisation", "grey"],
)  # fmt: skip
def test_the_spelling_rule_bites(word):
    assert british_words(f"the {word} of it") != []


@pytest.mark.parametrize(
    "text",
    ["neighbors catalogs normalized optimizer color labeled center analyses metrics parameters",
     "characteristics precise rise optimistic organism aria-labelledby four hours your journal",
     "minimal spelled canceled fiber greater theory synchronous equal cancellation"],
)  # fmt: skip
def test_american_words_pass(text):
    assert british_words(text) == []


def test_packages_hold_a_docstring_only():
    for name in {name.split(".")[0] for name in MODULES if "." in name}:
        assert len(MODULES[name].body) == 1, f"{name}/__init__.py does more than describe itself"


def test_every_mode_is_a_stage():
    from pinsage_jax import cli
    from pinsage_jax.stages import modes

    assert tuple(modes.MODULES) == cli.MODES
    for mode, module in modes.MODULES.items():
        body = MODULES[f"stages.{module}"].body
        assert mode in {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    "source",
    [
        "from numba import njit\n@njit\ndef f(): pass",
        "import numba\n@numba.njit\ndef f(): pass",
        "from numba import njit\n@njit(cache=True)\ndef f(): pass",
        "from numba import njit\n@njit(nogil=False)\ndef f(): pass",
        "from numba import njit\nf = njit(lambda: 1)",
        "from numba import njit\n@njit(nogil=True, parallel=True)\ndef f(): pass",
        "from numba import njit\n@njit(nogil=True, fastmath={'nsz'})\ndef f(): pass",
        "from numba import njit, prange\n@njit(nogil=True)\ndef f():\n  for i in prange(3): pass",
    ],
)
def test_the_kernel_rule_finds_bad_examples(source):
    assert kernel_complaints("x", ast.parse(source))
    assert not kernel_complaints("x", ast.parse("@njit(nogil=True)\ndef f(): pass"))


@pytest.mark.parametrize(
    "source",
    [
        "from numba import njit",
        "from numba import carray, cfunc",
        "import numba\n@numba.njit(nogil=True)\ndef f(): pass",
    ],
)
def test_the_compiler_rule_bites(source):
    assert compiler_complaints("x", ast.parse(source))
    assert not compiler_complaints("cpu.kernel_cache", ast.parse(source))
    assert not compiler_complaints("x", ast.parse("import numba\nnumba.config.DISABLE_JIT"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n  import joblib",
        "from sklearn.externals import joblib",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "pd.read_pickle(p)",
    ],
)
def test_the_pickle_rule_finds_bad_examples(source):
    assert pickle_complaints("x", ast.parse(source))
    assert not pickle_complaints("x", ast.parse("np.load(p, allow_pickle=False)"))


@pytest.mark.parametrize(
    "source",
    ["jax.pmap(f)", "from jax import pmap", "from jax.sharding import NamedSharding as N"],
)
def test_the_device_rule_finds_bad_examples(source):
    assert device_complaints("training.loop", ast.parse(source))
    assert not device_complaints("distributed.devices", ast.parse(source))


@pytest.mark.parametrize(
    "source", ["from absl import flags", "import absl.app", "from absl.flags import DEFINE_flag"]
)
def test_the_flag_rule_finds_bad_examples(source):
    assert flag_complaints("graph.csr", ast.parse(source))
    assert not flag_complaints("graph.csr", ast.parse("from absl import logging"))


def test_the_import_rules_find_bad_examples():
    sources = {
        "graph": '"""G."""',
        "graph.csr": "from pinsage_jax.sampling.walks import walk",
        "sampling": '"""S."""',
        "sampling.walks": "def walk():\n  from pinsage_jax import training",
        "training": "import jax.numpy as jnp",
        "odd": "import os",
    }
    modules = {name: ast.parse(source) for name, source in sources.items()}
    complaints = {n: direction_complaints(n, tree, modules) for n, tree in modules.items()}
    assert complaints["graph.csr"] == ["graph.csr imports sampling.walks"]
    assert complaints["sampling.walks"] == ["sampling.walks imports training"]
    assert complaints["odd"] == ["odd is not listed in ORDER"]
    assert jax_complaints("graph.csr", modules) == ["graph.csr reaches training, which imports jax"]
    assert jax_complaints("graph", modules) == []
