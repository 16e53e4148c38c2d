"""The project's Python files: which room each lies in, what it imports and defines, and its tokens."""

import ast
import collections
import functools
import io
import re
import tokenize
import typing

PACKAGES = ("mtld_core", "data_prep")
SCRIPTS = ("kaggle", "bench")  # their files import each other by bare name
SYSTEMS = "mtld_core.systems"
NO_SYSTEMS = ("__init__", "base", "opening", "baselines")  # what lies in systems/ for all of them
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
LAYOUT = ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")


class House:
    """All of the project's code under `root`, without its tests.

    files: dict module -> PythonFile. imports: list of (file, Import), foreign ones included.
    own: imports of the project's files, as (importing file, line, imported file).
    arrows: set of (importing room, imported room), for different rooms.
    """

    def __init__(self, root):
        self.files = {}
        for folder in (*PACKAGES, *SCRIPTS, "notebooks"):
            for path in sorted((root / folder).rglob("*.py")):
                if ".ipynb_checkpoints" not in path.parts:
                    file = PythonFile(path, root)
                    self.files[file.module] = file
        self.rooms = {file.room for file in self.files.values()}
        self.imports, self.own, self.arrows = [], [], set()
        for file in self.files.values():
            for each in file.imports(self.files):
                self.imports.append((file, each))
                if each.module in self.files:
                    wanted = self.files[each.module]
                    self.own.append((file, each.line, wanted))
                    if file.room != wanted.room:
                        self.arrows.add((file.room, wanted.room))

    def of(self, *folders):
        """Files of some folders at the top, such as "mtld_core" and "bench"."""
        return [file for file in self.files.values() if file.folder in folders]

    def of_room(self, room):
        return [file for file in self.files.values() if file.room == room]


class Import(typing.NamedTuple):
    """A name that an import statement brings into a file."""

    line: int
    local: str  # what the file calls it
    full: str  # "mtld_core.data.Arc"
    module: str  # "mtld_core.data", where it comes from; a name that is a module stands for itself


class PythonFile:
    """One file, read and parsed.

    where: "mtld_core/data/store.py". folder: "mtld_core". module: "mtld_core.data.store".
    room: "data/", or "media.py" for a file directly in mtld_core/, or "bench/" for one beside mtld_core/.
    system: "mtld" for what lies in mtld_core/systems/mtld/; "" for what systems share, and for all else.
    """

    def __init__(self, path, root):
        self.where = path.relative_to(root).as_posix()
        self.parts = path.relative_to(root).with_suffix("").parts
        self.folder = self.parts[0]
        self.module = ".".join(self.parts).removesuffix(".__init__")
        first, inside, _ = self.where.removeprefix("mtld_core/").partition("/")
        self.room = first + inside
        in_a_system = self.module.startswith(f"{SYSTEMS}.") and self.parts[2] not in NO_SYSTEMS
        self.system = self.parts[2] if in_a_system else ""
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, self.where)
        self.docstrings = {(text.lineno, text.col_offset) for text in docstrings_of(self.tree)}

    @functools.cached_property
    def tokens(self):
        """Counter line -> tokens that start there, without docstrings, comments and layout.

        A string counts as one token, an f-string too.
        """
        counted = collections.Counter()
        open_strings = 0  # since Python 3.12 an f-string comes in pieces
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            kind = tokenize.tok_name[token.type]
            if kind.endswith("STRING_END"):
                open_strings -= 1
            elif not open_strings and kind not in LAYOUT and token.start not in self.docstrings:
                counted[token.start[0]] += 1
            if kind.endswith("STRING_START"):
                open_strings += 1
        return counted

    def imports(self, modules):
        """Yield an Import for every imported name, also inside functions. modules: the project's, by name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    module = self._beside(alias.name, modules)
                    yield Import(node.lineno, alias.asname or alias.name, module, module)
            elif isinstance(node, ast.ImportFrom):
                above = self.parts[: -node.level] if node.level else ()
                package = self._beside(".".join([*above, *filter(None, [node.module])]), modules)
                for alias in node.names:
                    full = f"{package}.{alias.name}"
                    module = full if full in modules else package
                    yield Import(node.lineno, alias.asname or alias.name, full, module)

    def _beside(self, name, modules):
        """Full name of a module that a script imports by its bare name."""
        full = f"{self.folder}.{name}"
        return full if self.folder in SCRIPTS and full in modules else name

    def strings(self):
        """Yield (line, text) for every string that is no docstring, the pieces of f-strings included."""
        for node in ast.walk(self.tree):
            is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_string and (node.lineno, node.col_offset) not in self.docstrings:
                yield node.lineno, node.value

    def functions(self):
        """Yield (lines, "mtld_core/media.py:12 strip()") for every function and method."""
        for node in ast.walk(self.tree):
            if isinstance(node, FUNCTIONS):
                yield node.end_lineno - node.lineno + 1, f"{self.where}:{node.lineno} {node.name}()"

    def definitions(self):
        """Yield (full name, statement) for every function, class and constant at the top level."""
        for statement in self.tree.body:
            if isinstance(statement, DEFINITIONS):
                yield f"{self.module}.{statement.name}", statement
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                for name in names_in(statement, ast.Store):
                    yield f"{self.module}.{name}", statement

    def public(self):
        """Yield (full name, line) for every function and class at the top level that others may use."""
        for name, statement in self.definitions():
            if isinstance(statement, DEFINITIONS) and not statement.name.startswith("_"):
                yield name, statement.lineno

    def mentions(self, modules):
        """Yield (full name of a definition, full name of an import or another definition that it uses)."""
        full = {each.local: each.full for each in self.imports(modules)}
        full |= {name.rpartition(".")[2]: name for name, _ in self.definitions()}
        for user, statement in self.definitions():
            for name in names_in(statement, ast.Load):
                if name in full:
                    yield user, full[name]


def reached(start, arrows):
    """All that a walk from `start` may come to, itself included. arrows: defaultdict name -> names."""
    found, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(arrows[name])
    return found


def size_of(files):
    """(lines of code, tokens) of some files."""
    return sum(len(file.tokens) for file in files), sum(file.tokens.total() for file in files)


def members_of(contract):
    """Names on the left of the table in a file's docstring: "start / step" are two, "loss(batch)" is one."""
    docstring = contract and ast.get_docstring(contract.tree)
    if not docstring:
        return []
    left = re.findall(r"^ {4}(\w.*?)(?:  |$)", docstring, re.MULTILINE)
    names = re.findall(r"\w+", re.sub(r"\(.*?\)", "", " ".join(left)))
    return [name for name in names if name != "or"]


def docstrings_of(tree):
    """Yield the statement that is the docstring of a module, a class or a function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node) is not None:
            yield node.body[0]


def names_in(statement, context):
    """Yield the plain names that a statement reads (ast.Load) or sets (ast.Store)."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            yield node.id
