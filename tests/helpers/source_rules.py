"""Rules for source code that several tests apply, and the order of the package's folders."""

import ast

# Data flows down this list, and a line imports only from lines above it and itself.
ORDER = (
    ("core",),
    ("config",),
    ("distributed", "cpu"),
    ("data",),
    ("synthetic",),
    ("graph",),
    ("catalog",),
    ("listing",),
    ("sampling",),
    ("batching",),
    ("model",),
    ("tracking",),
    ("training",),
    ("inference",),
    ("export",),
    ("retrieval",),
    ("following",),
    ("evaluation",),
    ("ablation",),
    ("ranking",),
    ("recommend",),
    ("reporting",),
    ("explorer",),
    ("stores",),
    ("checkup", "spark"),
    ("serving",),
    ("stages",),
    ("api", "cli"),
    ("estimator",),
    ("main",),
    ("__main__",),
)
UNPICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports(tree: ast.Module) -> set[str]:
    """Every module imported anywhere, 'a.b' for both `import a.b` and `from a import b`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def pickle_complaints(name: str, tree: ast.Module) -> list[str]:
    found = [m for m in sorted(imports(tree)) if set(m.split(".")) & UNPICKLING]
    complaints = [f"{name} imports {module}" for module in found]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                complaints.append(f"{name}:{node.value.lineno} allows pickles")
        elif isinstance(node, ast.Attribute) and node.attr in ("read_pickle", "to_pickle"):
            complaints.append(f"{name}:{node.lineno} calls {node.attr}")
    return complaints
