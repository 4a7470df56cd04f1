"""Which names a notebook's cell sets, and which it reads from other cells."""

import ast


class CellNames(ast.NodeVisitor):
    """The names that code sets (`stores`) and those that it reads from elsewhere (`reads`)."""

    def __init__(self, source: str = "") -> None:
        self.stores: set[str] = set()
        self.loads: set[str] = set()
        self.visit(ast.parse(source))

    @property
    def reads(self) -> set[str]:
        """The names that are read and nowhere set."""
        return self.loads - self.stores

    def visit_Name(self, node: ast.Name) -> None:
        (self.loads if isinstance(node.ctx, ast.Load) else self.stores).add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self.stores.add(node.arg)

    def visit_alias(self, node: ast.alias) -> None:
        self.stores.add((node.asname or node.name).partition(".")[0])

    def _visit_scope(self, node: ast.AST) -> None:
        inner = CellNames()
        for child in ast.iter_child_nodes(node):
            inner.visit(child)
        self.loads |= inner.reads
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.stores.add(node.name)

    visit_FunctionDef = visit_ClassDef = visit_Lambda = _visit_scope
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_scope
